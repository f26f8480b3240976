"""Codecs. The vectors were made by Go's encoding/json, so that these tests need no Go."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gokamsg.engine.codec import Bytes, Codec, Int64, Json, String
from gokamsg.engine.partition_processor import _decode
from gokamsg.engine.quarantine.reason import traceback_of
from gokamsg.errors import CodecError


class Message(msgspec.Struct, forbid_unknown_fields=True):
    From: str
    To: str
    Content: str


class BlockEvent(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    Unblock: bool


class Counters(msgspec.Struct, forbid_unknown_fields=True):
    Sent: int
    Received: int


class Kid(msgspec.Struct, forbid_unknown_fields=True):
    K: str
    S: Message
    Ok: bool


class Nested(msgspec.Struct, forbid_unknown_fields=True):
    Name: str
    Inner: Counters
    List: list[Counters]
    Words: list[str]
    Grid: list[list[int]]
    Kids: list[Kid]


class Defaulted(msgspec.Struct, forbid_unknown_fields=True):
    Sent: int = 0
    Word: str = "none"


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    Inner: Defaulted


CODECS: dict[str, Json[Any]] = {
    "Message": Json(Message),
    "BlockEvent": Json(BlockEvent),
    "Counters": Json(Counters),
    "Nested": Json(Nested),
    "Messages": Json(list[Message]),
    "Nesteds": Json(list[Nested]),
}
VECTORS: list[tuple[str, bytes, bytes | None]] = [
    (kind, data.encode("latin-1"), None if wanted is None else wanted.encode("latin-1"))
    for kind, data, wanted in json.loads(Path(__file__).with_name("go_json_vectors.json").read_text())["vectors"]
]
WHOLE = b'{"From":"a","To":"b","Content":"c"}'
HELLO = Message("Bob", "Alice", "Hey, how are you doing?")


def again(kind: str, data: bytes) -> bytes | None:
    """What Go's Unmarshal and Marshal make of the data here; None for an error."""
    try:
        return CODECS[kind].encode(CODECS[kind].decode(data))
    except CodecError:
        return None


@pytest.mark.goka("codec: JSON bytes as Go writes them", "codec: JSON read by Go's rules")
def test_json_reads_and_writes_as_go_does() -> None:
    different = [(kind, data) for kind, data, wanted in VECTORS if again(kind, data) != wanted]
    assert different == []
    assert sum(wanted is None for _, _, wanted in VECTORS) > 500
    assert sum(wanted is not None for _, _, wanted in VECTORS) > 900


def test_json_ends_where_go_ends_in_depth() -> None:
    deep = b'{"x":' + b"[" * 9_999 + b"]" * 9_999 + b"}"
    assert again("Counters", deep) == b'{"Sent":0,"Received":0}'
    assert again("Counters", b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}") is None
    assert again("Counters", b'{"x":' + b'{"a":' * 9_999 + b"1" + b"}" * 10_000) == b'{"Sent":0,"Received":0}'


@pytest.mark.goka("codec: JSON bytes as Go writes them")
def test_json_bytes_of_the_example() -> None:
    assert CODECS["Message"].encode(HELLO) == b'{"From":"Bob","To":"Alice","Content":"Hey, how are you doing?"}'
    assert CODECS["Messages"].encode([HELLO, HELLO]).startswith(b'[{"From":"Bob","To":"Alice","Content":"Hey,')
    assert CODECS["Messages"].encode([]) == b"[]"
    assert CODECS["BlockEvent"].encode(BlockEvent(Unblock=False)) == b'{"Unblock":false}'
    assert CODECS["Counters"].encode(Counters(200, 1)) == b'{"Sent":200,"Received":1}'


def test_json_escapes_what_go_escapes() -> None:
    encoded = CODECS["Message"].encode(Message("<b>&", "\u2028\u2029\u2019", '\x00\x1f\x7f\b\f\n\r\t"\\/ü😀'))
    assert encoded == (
        rb'{"From":"\u003cb\u003e\u0026","To":"\u2028\u2029' + "\u2019".encode() + rb'","Content":"\u0000\u001f'
        b'\x7f\\b\\f\\n\\r\\t\\"\\\\/' + "ü😀".encode() + b'"}'
    )


def test_json_writes_lone_surrogates_as_the_replacement_character() -> None:
    encoded = CODECS["Messages"].encode([Message("\ud800", "a\udfffb", "\udc80<")])
    assert encoded == '[{"From":"\ufffd","To":"a\ufffdb","Content":"\ufffd\\u003c"}]'.encode()


def test_json_keeps_declared_defaults_and_merges_them_as_go_merges_preset_values() -> None:
    assert Json(Defaulted).decode(b"{}") == Defaulted(0, "none")
    assert Json(Outer).decode(b'{"Inner":{"Sent":1,"Word":"x"},"Inner":{"Sent":2}}') == Outer(Defaulted(2, "x"))


@pytest.mark.parametrize("value", [None, "text", b"bytes", Counters(1, 2), [HELLO], {"From": "a"}])
def test_json_refuses_another_type(value: Any) -> None:
    with pytest.raises(CodecError, match=r"codec Json\[Message\] cannot encode"):
        CODECS["Message"].encode(value)


def test_json_refuses_lists_of_something_else_and_numbers_beyond_64_bits() -> None:
    for value in (HELLO, [Counters(1, 2)], (HELLO,)):
        with pytest.raises(CodecError, match="list of its structs"):
            CODECS["Messages"].encode(value)
    with pytest.raises(CodecError, match="cannot encode"):
        CODECS["Counters"].encode(Counters(1 << 70, 0))
    with pytest.raises(CodecError, match="cannot encode"):
        CODECS["Counters"].encode(Counters(1 << 63, 0))
    with pytest.raises(CodecError, match="cannot encode"):
        CODECS["Messages"].encode([Message("a", "b", object())])  # type: ignore[arg-type]


def test_json_says_what_is_wrong_and_where() -> None:
    with pytest.raises(
        CodecError, match=r"Json\[Message\] cannot decode b'\{\"To\":1\}': 1 is not a str \(near byte 7\)"
    ):
        CODECS["Message"].decode(b'{"To":1}')
    with pytest.raises(CodecError, match="ends too early"):
        CODECS["Message"].decode(b"")
    with pytest.raises(CodecError, match="something follows"):
        CODECS["Message"].decode(b"{} {}")


def test_a_batch_is_decoded_like_its_values_or_refused() -> None:
    """A damaged value never moves another value to a different record."""
    seed = 7
    chance = random.Random(seed)
    by_kind: dict[str, list[tuple[bytes, bytes | None]]] = {}
    for kind, data, wanted in VECTORS:
        by_kind.setdefault(kind, []).append((data, wanted))
    decoded = 0
    for _ in range(20_000):
        kind = chance.choice(list(by_kind))
        picked = chance.choices(by_kind[kind], k=chance.randrange(1, 4))
        try:
            values = CODECS[kind].decode_many([data for data, _ in picked])
        except CodecError:
            continue
        decoded += 1
        assert [CODECS[kind].encode(value) for value in values] == [wanted for _, wanted in picked], f"seed {seed}"
    assert decoded > 200


@pytest.mark.parametrize(
    "batch",
    [
        [b'{"From":"a","To":"b","Content":"c"},{"From":"d","To":"e","Content":"f"}', b'{"From":"', b'"}'],
        # Two values and a half, the rest after the string has swallowed what stands between: as many as expected.
        [WHOLE + b"," + WHOLE + b',{"From":"a","To":"b","Content":"', b'"}'],
        [b'{"From":"a","To":"b","Content":"', b'"}'],
        [b"[", b"]"],
        [b"1", b"2"],
        [b'{"From":"a","To":"b","Content":"c"},7,{"From":"d","To":"e","Content":"f"}'],
        [b'{"From":"a","To":"b","Content":"c"}', b"5"],
        [b""],
        [b" ", b'{"From":"a","To":"b","Content":"c"}'],
        [b'{"From":"a","To":"b","Content":"c"}', b'{"From":"a","To":"b","Content":"c"}]'],
    ],
)
def test_a_batch_with_values_that_are_not_whole_is_refused(batch: list[bytes]) -> None:
    with pytest.raises(CodecError):
        CODECS["Message"].decode_many(batch)


def test_a_batch_of_ordinary_values() -> None:
    data = [CODECS["Message"].encode(Message("a", "b", str(number))) for number in range(500)]
    assert [message.Content for message in CODECS["Message"].decode_many(data)] == [str(n) for n in range(500)]
    assert CODECS["Message"].decode_many([]) == []
    assert CODECS["Counters"].decode_many([b'{"Sent":1,"Received":2}', b'{"sent":3}'][:1]) == [Counters(1, 2)]
    with pytest.raises(CodecError):
        CODECS["Counters"].decode_many([b'{"Sent":1,"Received":2}', b'{"Sent":1.0,"Received":2}'])


class Loose(msgspec.Struct):
    To: str


class Fraction(msgspec.Struct, forbid_unknown_fields=True):
    Share: float


class Tagged(msgspec.Struct, forbid_unknown_fields=True, tag=True):
    To: str


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    Children: "list[Tree]"


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Loose, "forbid_unknown_fields"), (Fraction, "float"), (Tagged, "tag"), (Tree, "within itself"), (int, "carries")],
)
def test_json_refuses_types_whose_bytes_go_would_not_share(kind: Any, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        Json(kind)


def test_what_is_decoded_once_and_shared_never_changes() -> None:
    assert Json(BlockEvent).shareable
    assert not any(codec.shareable for name, codec in CODECS.items() if name != "BlockEvent")
    assert all(codec.shareable for codec in (Bytes(), String(), Int64()))


@pytest.mark.goka("codec: bytes")
def test_bytes_as_they_are() -> None:
    assert Bytes().encode(b"\xff\x00") == b"\xff\x00" == Bytes().decode(b"\xff\x00")
    assert Bytes().decode_many([b"a", b""]) == [b"a", b""]
    with pytest.raises(CodecError, match="codec Bytes cannot encode a str"):
        Bytes().encode("text")  # type: ignore[arg-type]


@pytest.mark.goka("codec: string")
def test_string_is_unquoted_utf8_and_keeps_any_bytes() -> None:
    assert String().encode("zü") == b"z\xc3\xbc"
    for data in (b"", b"z\xc3\xbc", b"\xff\xfe", b"\xed\xa0\x80"):
        assert String().encode(String().decode(data)) == data
        assert String().decode_many([data]) == [String().decode(data)]
    assert String().encode("a\ud83db") == b"a\xef\xbf\xbdb"
    with pytest.raises(CodecError, match="codec String cannot encode None"):
        String().encode(None)  # type: ignore[arg-type]


@pytest.mark.goka("codec: int64")
def test_int64_is_decimal_digits() -> None:
    for value in (0, 7, -7, (1 << 63) - 1, -(1 << 63)):
        assert Int64().decode(Int64().encode(value)) == value
    assert Int64().encode(-12) == b"-12"
    assert Int64().decode(b"+007") == 7
    for data in (b"", b" 1", b"1_000", b"1.0", b"0x1", b"-", "٣".encode(), b"9223372036854775808", b"1" * 100):
        with pytest.raises(CodecError, match="codec Int64 cannot decode"):
            Int64().decode(data)
    refused: list[Any] = [True, 1.0, "1", 1 << 63, None]
    for item in refused:
        with pytest.raises(CodecError, match="codec Int64 cannot encode"):
            Int64().encode(item)


def test_every_codec_has_a_name() -> None:
    codecs: list[Codec[Any]] = [Bytes(), String(), Int64(), Json(Message), Json(list[Message])]
    assert [codec.name for codec in codecs] == ["Bytes", "String", "Int64", "Json[Message]", "Json[list[Message]]"]


@pytest.mark.parametrize("bad", [(), (0,), (99,), (17, 18), tuple(range(0, 100, 9))])
def test_bad_values_among_many_are_found_and_the_others_decoded(bad: tuple[int, ...]) -> None:
    codec = CODECS["Message"]
    data: list[bytes | None] = [b'{"From":"a","To":"b","Content":"%d"}' % number for number in range(100)]
    for number in bad:
        data[number] = b"{ bad"
    values, found = _decode(codec, data, None)
    assert tuple(found) == bad
    for number, value in enumerate(values):
        if number in bad:
            assert isinstance(value.error, CodecError)
            assert "During handling" not in traceback_of(value.error), "the search for it is not told"
        else:
            assert value.Content == str(number)
