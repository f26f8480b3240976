"""JSON into Python values by the rules of Go's encoding/json, whatever the input. Pure.

This is the slow and exact reader behind codec.Json: names match exactly or else case-insensitively, unknown fields are
skipped, null leaves a value as it was, the last of several duplicates wins (structs are merged, slices reuse their old
elements, as Go does), integers are written without fraction or exponent and fit 64 bits, every invalid UTF-8 byte or
lone surrogate becomes U+FFFD, nothing may follow the document, and nesting ends at 10,000 levels.

Types: str, int, bool, msgspec.Struct of these, and lists of all of them. Anything else is refused when it is declared.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn, get_args, get_origin

import msgspec

from gokamsg.errors import CodecError

_TOKEN = re.compile(
    rb"""[ \t\r\n]*(?:
    ("[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")
    |(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(true|false|null)
    |([\[\]{},:])
    )""",
    re.VERBOSE,
)
_STRING, _NUMBER, _LITERAL, _PUNCTUATION = 1, 2, 3, 4
_REST = re.compile(rb"[ \t\r\n]*")
_INTEGER = re.compile(rb"-?[0-9]{1,30}")
_ESCAPE = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"'}
_SURROGATE = re.compile("[\ud800-\udfff]")
# Letters outside ASCII that Go folds onto an ASCII letter: long s and the Kelvin sign.
_FOLD = {**{ord(c): ord(c) + 32 for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}, 0x17F: ord("s"), 0x212A: ord("k")}
_MAX_DEPTH = 10_000
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


def replace_surrogates(text: str) -> str:
    """The text with every lone surrogate as U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def fold(name: str) -> str:
    """The form under which Go compares field names that do not match exactly (for ASCII field names)."""
    return name.translate(_FOLD)


class Schema:
    """What a JSON value is read into: a str, int or bool."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def zero(self) -> Any:
        """Go's zero value, as the mutable node that reading fills in."""
        return self.kind()

    def build(self, node: Any) -> Any:
        """The finished value of a node."""
        return node

    def read(self, reader: "_Reader", token: bytes, kind: int, current: Any) -> Any:
        """Read one value that starts with the token; `current` is what it was before."""
        if kind == _STRING and self.kind is str:
            return _unquote(token)
        if kind == _LITERAL and self.kind is bool:
            return token == b"true"
        if kind == _NUMBER and self.kind is int and _INTEGER.fullmatch(token):
            number = int(token)
            if INT64_MIN <= number <= INT64_MAX:
                return number
        return reader.fail(f"{_shown(token)} is not {'an' if self.kind is int else 'a'} {self.kind.__name__}")


class ArraySchema(Schema):
    """A list. A node is the elements ever read here, and how many of them are there now."""

    def __init__(self, item: Schema) -> None:
        super().__init__(list)
        self.item = item

    def zero(self) -> Any:
        return ([], 0)

    def build(self, node: Any) -> Any:
        items, length = node
        return [self.item.build(item) for item in items[:length]]

    def read(self, reader: "_Reader", token: bytes, kind: int, current: Any) -> Any:
        if token != b"[":
            reader.fail(f"{_shown(token)} is not a list")
        items, count = current[0], 0
        token, kind = reader.next()
        if token == b"]":
            return self.zero()
        while True:
            # Go decodes into the elements that the slice had before, even those beyond its length.
            if count == len(items):
                items.append(self.item.zero())
            items[count] = reader.value(self.item, token, kind, items[count])
            count += 1
            if not reader.more(b"]"):
                return (items, count)
            token, kind = reader.next()


class StructSchema(Schema):
    """A msgspec.Struct. A node is a dictionary of its fields' nodes by Python name."""

    def __init__(self, struct: type[msgspec.Struct], fields: dict[str, tuple[str, Schema, Callable[[], Any]]]) -> None:
        super().__init__(struct)
        self.initial = {name: initial for name, _, initial in fields.values()}
        self.schemas = {name: schema for name, schema, _ in fields.values()}
        self.exact = {encoded: name for encoded, (name, _, _) in fields.items()}
        self.folded: dict[str, str] = {}
        for encoded, name in self.exact.items():
            self.folded.setdefault(fold(encoded), name)

    def zero(self) -> Any:
        return {name: initial() for name, initial in self.initial.items()}

    def build(self, node: Any) -> Any:
        return self.kind(**{name: self.schemas[name].build(value) for name, value in node.items()})

    def read(self, reader: "_Reader", token: bytes, kind: int, current: Any) -> Any:
        if token != b"{":
            reader.fail(f"{_shown(token)} is not an object")
        token, kind = reader.next()
        if token == b"}":
            return current
        while True:
            if kind != _STRING:
                reader.fail("a field name is missing")
            key = _unquote(token)
            reader.expect(b":")
            name = self.exact.get(key) or self.folded.get(fold(key))
            token, kind = reader.next()
            if name is None:
                reader.skip(token, kind)
            else:
                current[name] = reader.value(self.schemas[name], token, kind, current[name])
            if not reader.more(b"}"):
                return current
            token, kind = reader.next()


def schema_of(kind: Any, outer: tuple[Any, ...] = ()) -> Schema:
    """The schema of a declared type; CodecError if it is none that Go and Python share here."""
    if kind in (str, int, bool):
        return Schema(kind)
    if get_origin(kind) is list:
        return ArraySchema(schema_of(get_args(kind)[0], outer))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in outer:
        return _struct_schema(kind, (*outer, kind))
    raise CodecError(f"Json cannot carry {kind!r}; use str, int, bool, a msgspec.Struct (not within itself) or a list")


def _struct_schema(struct: type[msgspec.Struct], outer: tuple[Any, ...]) -> StructSchema:
    config = struct.__struct_config__
    if not config.forbid_unknown_fields:
        raise CodecError(f"struct {struct.__name__!r} needs forbid_unknown_fields=True, to notice names in other cases")
    if config.array_like or config.omit_defaults or config.tag is not None:
        raise CodecError(f"struct {struct.__name__!r} uses array_like, omit_defaults or tag, which Go does not have")
    fields: dict[str, tuple[str, Schema, Callable[[], Any]]] = {}
    for field in msgspec.structs.fields(struct):
        schema = schema_of(field.type, outer)
        default = field.default
        if default is msgspec.NODEFAULT or type(schema) is not Schema:
            if not field.required and default is not msgspec.NODEFAULT:
                raise CodecError(f"field {field.name!r} of {struct.__name__!r} needs a default_factory, or no default")
            initial: Callable[[], Any] = schema.zero
        else:
            initial = _constant(default)
        fields[field.encode_name] = (field.name, schema, initial)
    return StructSchema(struct, fields)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


class _Reader:
    """The tokens of one document."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.depth = 0

    def fail(self, why: str) -> NoReturn:
        raise CodecError(f"{why} (near byte {self.at})")

    def next(self) -> tuple[bytes, int]:
        match = _TOKEN.match(self.data, self.at)
        if match is None:
            self.fail("the JSON ends too early" if not self.data[self.at :].strip() else "this is not JSON")
        self.at = match.end()
        kind = match.lastindex or 0
        token = match[kind]
        if token in (b"{", b"["):
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                self.fail(f"the JSON is nested deeper than {_MAX_DEPTH} levels")
        elif token in (b"}", b"]"):
            self.depth -= 1
        return token, kind

    def expect(self, wanted: bytes) -> None:
        if self.next()[0] != wanted:
            self.fail(f"{wanted.decode()!r} is missing")

    def more(self, closing: bytes) -> bool:
        """Whether a comma follows (else it is the closing bracket)."""
        token, _ = self.next()
        if token not in (b",", closing):
            self.fail(f"',' or {closing.decode()!r} is missing")
        return token == b","

    def value(self, schema: Schema, token: bytes, kind: int, current: Any) -> Any:
        if token == b"null":
            return schema.zero() if isinstance(schema, ArraySchema) else current
        return schema.read(self, token, kind, current)

    def skip(self, token: bytes, kind: int) -> None:
        """Pass over one value of any shape, without recursion."""
        closing: list[bytes] = []
        while True:
            if kind == _PUNCTUATION and token in (b"{", b"["):
                opened = b"}" if token == b"{" else b"]"
                token, kind = self.next()
                if token != opened:
                    closing.append(opened)
                    token, kind = self._after_key(opened, token, kind)
                    continue
            elif kind == _PUNCTUATION:
                self.fail("a value is missing")
            while closing and not self.more(closing[-1]):
                closing.pop()
            if not closing:
                return
            token, kind = self._after_key(closing[-1], *self.next())

    def _after_key(self, closing: bytes, token: bytes, kind: int) -> tuple[bytes, int]:
        if closing == b"]":
            return token, kind
        if kind != _STRING:
            self.fail("a field name is missing")
        self.expect(b":")
        return self.next()


def decode(schema: Schema, data: bytes) -> Any:
    """The value that Go would decode from the data into a fresh variable of this type; CodecError where Go fails."""
    reader = _Reader(data)
    token, kind = reader.next()
    node = reader.value(schema, token, kind, schema.zero())
    rest = _REST.match(data, reader.at)
    if rest is None or rest.end() != len(data):
        reader.fail("something follows the JSON value")
    return schema.build(node)


def _unquote(token: bytes) -> str:
    # surrogateescape gives one stand-in for each invalid byte; Go also replaces byte by byte.
    text = token[1:-1].decode("utf-8", "surrogateescape")
    if "\\" in text:
        text = _ESCAPE.sub(_unescape, text)
    return text if text.isascii() else replace_surrogates(text)


def _unescape(match: "re.Match[str]") -> str:
    high, low, code, short = match.groups()
    if high is not None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    return chr(int(code, 16)) if code is not None else _SHORT[short]


def _shown(token: bytes) -> str:
    return token[:40].decode("utf-8", "replace")
