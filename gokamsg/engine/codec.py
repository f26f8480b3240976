"""Between values and bytes: the codecs of tables and streams.

A codec has a name, encode and decode, and raises CodecError where it cannot. It may offer decode_many, which decodes a
whole batch in one call and raises CodecError if any of it is bad (the caller then decodes one by one to find which).
It may say that it is `shareable`: decoded values never change, so that one may be handed out several times.
Null values (tombstones) never reach a codec.

Json writes the bytes that Go's encoding/json writes and reads what Go reads, with msgspec's speed for the ordinary case
and go_json for all others. It does not check the types of a struct's fields when it encodes: a type checker does.
Threads: codecs hold no changing state and may be shared.
"""

import random
import re
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, Union, get_args, get_origin

import msgspec

from gokamsg.engine import go_json
from gokamsg.errors import CodecError

T = TypeVar("T")

_type_of: Any = type

_DIGITS = re.compile(rb"[+-]?[0-9]{1,40}")
# msgspec takes integers of any size for an int, Go only those of 64 bits: a number with so many digits is looked at.
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * 19
_SHOWN_BYTES = 60


class Codec(Protocol[T]):
    """Encodes and decodes the values of a topic."""

    @property
    def name(self) -> str:
        """How the codec shows in edges and errors; two codecs of one name write the same bytes."""

    def encode(self, value: T) -> bytes:
        """The bytes of a value; CodecError if it has none."""

    def decode(self, data: bytes) -> T:
        """The value of the bytes; CodecError if they are none."""


class Bytes:
    """Bytes as they are."""

    name = "Bytes"
    shareable = True

    def encode(self, value: bytes) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise CodecError(f"codec Bytes cannot encode {_kind(value)}; give it bytes")
        return bytes(value)

    def decode(self, data: bytes) -> bytes:
        return bytes(data)

    def decode_many(self, data: Sequence[bytes]) -> list[bytes]:
        """Every value of a batch."""
        return [bytes(item) for item in data]


class String:
    """UTF-8 text, unquoted. Bytes that are not UTF-8 come through a round trip unchanged (surrogateescape)."""

    name = "String"
    shareable = True

    def encode(self, value: str) -> bytes:
        if not isinstance(value, str):
            raise CodecError(f"codec String cannot encode {_kind(value)}; give it a str")
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return go_json.replace_surrogates(value).encode()

    def decode(self, data: bytes) -> str:
        return str(data, "utf-8", "surrogateescape")

    def decode_many(self, data: Sequence[bytes]) -> list[str]:
        """Every value of a batch."""
        return [str(item, "utf-8", "surrogateescape") for item in data]


class Int64:
    """A 64-bit integer as decimal digits."""

    name = "Int64"
    shareable = True

    def encode(self, value: int) -> bytes:
        if not isinstance(value, int) or isinstance(value, bool):
            raise CodecError(f"codec Int64 cannot encode {_kind(value)}; give it an int")
        if not go_json.INT64_MIN <= value <= go_json.INT64_MAX:
            raise CodecError(f"codec Int64 cannot encode {value}: it does not fit 64 bits")
        return b"%d" % value

    def decode(self, data: bytes) -> int:
        value = int(data) if _DIGITS.fullmatch(data) else None
        if value is None or not go_json.INT64_MIN <= value <= go_json.INT64_MAX:
            raise CodecError(f"codec Int64 cannot decode {_shown(data)}: it is not a 64-bit decimal number")
        return value


class Json(Generic[T]):
    """A msgspec.Struct, or a list of them, as Go's encoding/json writes and reads it."""

    name: Final[str]

    def __init__(self, kind: type[T]) -> None:
        self._schema = go_json.schema_of(kind)
        self._is_list = get_origin(kind) is list
        self._kind: Any = get_args(kind)[0] if self._is_list else kind
        if not isinstance(self._schema, (go_json.StructSchema, go_json.ArraySchema)):
            raise CodecError(f"Json carries a msgspec.Struct or a list, not {kind!r}")
        self._item_kinds = {self._kind}
        kind_name = getattr(self._kind, "__name__", str(self._kind))
        self.name = f"Json[list[{kind_name}]]" if self._is_list else f"Json[{kind_name}]"
        self.shareable = _is_shareable(self._schema)
        self._has_numbers = _has_numbers(self._schema)
        self._encoder = msgspec.json.Encoder()
        self._decoder: Any = msgspec.json.Decoder(kind)
        self._batch_decoder: Any = msgspec.json.Decoder(list[Union[kind, int]])  # type: ignore[valid-type]  # noqa: UP007
        # 18 digits, so that it is no long number itself; unknown to whoever writes the records.
        self._nonce = random.SystemRandom().randrange(10**17, 10**18)
        self._joint = b",%d," % self._nonce
        # A struct inside another may be merged from duplicates in Go; msgspec cannot tell if it has defaults.
        self._exact_only = _has_inner_defaults(self._schema)

    def encode(self, value: T) -> bytes:
        if self._is_list:
            if not isinstance(value, list) or set(map(_type_of, value)) - self._item_kinds:
                raise CodecError(f"codec {self.name} cannot encode {_kind(value)}; give it a list of its structs")
        elif type(value) is not self._kind:
            raise CodecError(f"codec {self.name} cannot encode {_kind(value)}; give it a {self._kind.__name__}")
        try:
            data = self._encoder.encode(value)
        except (UnicodeEncodeError, msgspec.MsgspecError, TypeError, OverflowError):
            data = self._encode_repaired(value)
        # One pass that finds any of the four bytes is faster than four searches.
        if len(data.translate(None, b"<>&\xe2")) != len(data):
            data = data.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
            data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        if self._has_numbers and _has_long_number(data):
            self._check_numbers(data)
        return data

    def _check_numbers(self, data: bytes) -> None:
        try:
            go_json.decode(self._schema, data)
        except CodecError as error:
            raise CodecError(f"codec {self.name} cannot encode a number: {error}") from error

    def _encode_repaired(self, value: T) -> bytes:
        try:
            return self._encoder.encode(_without_surrogates(msgspec.to_builtins(value)))
        except (UnicodeEncodeError, msgspec.MsgspecError, TypeError, OverflowError) as error:
            raise CodecError(f"codec {self.name} cannot encode a value: {error}") from error

    def decode(self, data: bytes) -> T:
        if not (self._exact_only or (self._has_numbers and _has_long_number(data))):
            try:
                return self._decoder.decode(data)  # type: ignore[no-any-return]
            except (msgspec.MsgspecError, UnicodeDecodeError):
                pass  # Perhaps only unusual; Go's rules decide below.
        try:
            return go_json.decode(self._schema, bytes(data))  # type: ignore[no-any-return]
        except CodecError as error:
            raise CodecError(f"codec {self.name} cannot decode {_shown(data)}: {error}") from error

    def decode_many(self, data: Sequence[bytes]) -> list[T]:
        """All values in one call; CodecError if any of them is bad or unusual.

        A number that nobody outside knows stands between the values: a damaged value that closes its neighbour's
        brackets, or brings a comma of its own, would else shift values from one record to another.
        """
        if not data:
            return []
        joined = b"[%b]" % self._joint.join(data)
        if self._exact_only or (self._has_numbers and _has_long_number(joined)):
            return [self.decode(item) for item in data]
        try:
            decoded = self._batch_decoder.decode(joined)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CodecError(f"codec {self.name} cannot decode {len(data)} values at once: {error}") from error
        values: list[T] = decoded[::2]
        joints = len(data) - 1
        whole = len(decoded) == len(data) + joints and decoded[1::2].count(self._nonce) == joints
        if not whole or int in set(map(type, values)):
            raise CodecError(f"codec {self.name} cannot decode {len(data)} values at once: one is not whole")
        return values


def _has_long_number(data: bytes) -> bool:
    return _MANY_DIGITS in data.translate(_DIGITS_AS_ZEROS)


def _is_shareable(schema: go_json.Schema) -> bool:
    if not isinstance(schema, go_json.StructSchema):
        return False
    struct: type[msgspec.Struct] = schema.kind
    return struct.__struct_config__.frozen and all(type(field) is go_json.Schema for field in schema.schemas.values())


def _has_numbers(schema: go_json.Schema) -> bool:
    if isinstance(schema, go_json.StructSchema):
        return any(_has_numbers(inner) for inner in schema.schemas.values())
    return _has_numbers(schema.item) if isinstance(schema, go_json.ArraySchema) else schema.kind is int


def _has_inner_defaults(schema: go_json.Schema, inside: bool = False) -> bool:
    if isinstance(schema, go_json.ArraySchema):
        return _has_inner_defaults(schema.item, inside)
    if not isinstance(schema, go_json.StructSchema):
        return False
    if inside and any(not field.required for field in msgspec.structs.fields(schema.kind)):
        return True
    return any(_has_inner_defaults(inner, True) for inner in schema.schemas.values())


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return go_json.replace_surrogates(value)
    if isinstance(value, dict):
        return {key: _without_surrogates(inner) for key, inner in value.items()}
    return [_without_surrogates(inner) for inner in value] if isinstance(value, list) else value


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _shown(data: bytes) -> str:
    return repr(bytes(data[:_SHOWN_BYTES])) + ("…" if len(data) > _SHOWN_BYTES else "")
