"""Record batches against kafka-python's own reader and writer, and against what must be refused.

Every case runs both ways: what kafka-python writes is split here, what is built here is read by kafka-python.
"""

import random
import struct
from contextlib import suppress

import pytest
from kafka.codec import snappy_encode
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from gokamsg.engine.compression import CODECS
from gokamsg.engine.records import HEADER_BYTES, BatchBuilder, RecordBatch, parse_batches
from gokamsg.errors import CorruptBatchError

Record = tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]

NOW = 1_790_000_000_000
PLAIN: list[Record] = [(b"bob", b"hello", NOW, []), (b"alice", b"", NOW, []), (b"", b"x", NOW + 1, [])]
CASES: dict[str, list[Record]] = {
    "plain": PLAIN,
    "nulls": [(None, b"v", NOW, []), (b"k", None, NOW, []), (None, None, NOW, [])],
    "headers": [
        (b"k", b"v", NOW, [("trace", b"1"), ("empty", b""), ("null", None), ("trace", b"2"), ("ä", b"\x00\xff")]),
        (b"k", b"v", NOW, []),
        (None, None, NOW, [("a", None)]),
        (b"k", b"v" * 5000, NOW, [("last byte is zero", b"\x00")]),
    ],
    "big values": [(b"k" * n, b"v" * n, NOW + n, []) for n in (63, 64, 127, 128, 8191, 8192, 16384, 1_000_000)],
    "many": [(b"user%d" % (n % 97), b"%d" % n * (n % 40), NOW + n * 37, []) for n in range(20_000)],
    "times run back": [(b"k", b"v", NOW - n * 100_000, []) for n in range(50)],
    "no time": [(b"k", b"v", -1, [])],
}


def theirs(records: list[Record], codec: int = 0, **producer: int) -> bytearray:
    settings = {"is_transactional": False, "producer_id": -1, "producer_epoch": -1, "base_sequence": -1, **producer}
    builder = DefaultRecordBatchBuilder(magic=2, compression_type=codec, batch_size=1 << 30, **settings)
    for index, (key, value, timestamp, headers) in enumerate(records):
        assert builder.append(index, timestamp, key, value, headers) is not None
    return bytearray(builder.build())


def ours(records: list[Record], codec: int = 0) -> bytearray:
    builder = BatchBuilder()
    for key, value, timestamp, headers in records:
        builder.append(key, value, timestamp, headers)
    return builder.build(compression=codec)


def at(buf: bytearray, offset: int) -> bytearray:
    """The batch as the broker would have stored it at that offset."""
    moved = bytearray(buf)
    struct.pack_into(">q", moved, 0, offset)
    return moved


def parsed(buf: bytes | bytearray) -> RecordBatch:
    batch = RecordBatch.parse(buf)
    assert batch is not None
    return batch


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("records", CASES.values(), ids=CASES)
def test_splits_what_kafka_python_builds(records: list[Record], codec: int) -> None:
    batch = parsed(at(theirs(records, codec), 1000))
    split = batch.split()
    assert list(zip(split.keys, split.values, strict=True)) == [(key, value) for key, value, _, _ in records]
    assert list(split.offsets) == list(range(1000, 1000 + len(records)))
    assert (batch.base_offset, batch.next_offset, batch.count) == (1000, 1000 + len(records), len(records))
    shown = range(len(records)) if len(records) < 100 else (0, 1, 5000, len(records) - 1)
    assert [split.timestamp(index) for index in shown] == [records[index][2] for index in shown]
    assert [split.headers(index) for index in shown] == [records[index][3] for index in shown]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("records", CASES.values(), ids=CASES)
def test_kafka_python_reads_what_is_built(records: list[Record], codec: int) -> None:
    batch = DefaultRecordBatch(ours(records, codec))
    assert batch.validate_crc()
    assert batch.max_timestamp == max(timestamp for _, _, timestamp, _ in records)
    assert [(r.key, r.value, r.timestamp, r.headers) for r in batch] == records


@pytest.mark.parametrize("records", CASES.values(), ids=CASES)
def test_builds_the_same_bytes_as_kafka_python(records: list[Record]) -> None:
    assert ours(records)[17:] == theirs(records)[17:]


def test_producer_fields_arrive() -> None:
    builder = BatchBuilder()
    builder.append(b"k", b"v", NOW)
    built = builder.build(producer_id=7, producer_epoch=3, base_sequence=99, transactional=True)
    batch = DefaultRecordBatch(built)
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 3, 99)
    assert batch.is_transactional
    assert parsed(built).is_transactional
    assert parsed(built).producer_id == 7


def test_append_returns_the_size_that_is_built() -> None:
    builder = BatchBuilder()
    sizes = [builder.append(b"k" * n, b"v" * n, NOW) for n in (0, 10, 1000, 10_000)]
    assert sizes[-1] == builder.size == len(builder.build())
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("codec", [CODECS["none"], CODECS["snappy"]])
@pytest.mark.parametrize("start", [0, 1000, 1001, 1002, 1003, 5000])
def test_hides_the_records_before_the_start(start: int, codec: int) -> None:
    records: list[Record] = [(b"%d" % n, b"v%d" % n, NOW + n, [("n", b"%d" % n)]) for n in range(3)]
    split = parsed(at(theirs(records, codec), 1000)).split(start)
    kept = [n for n in range(3) if 1000 + n >= start]
    assert split.keys == [b"%d" % n for n in kept]
    assert list(split.offsets) == [1000 + n for n in kept]
    assert [split.timestamp(index) for index in range(len(split))] == [NOW + n for n in kept]
    assert [split.headers(index) for index in range(len(split))] == [[("n", b"%d" % n)] for n in kept]


def test_offsets_of_a_compacted_batch_have_its_holes() -> None:
    """Compaction keeps the deltas of the records that survive, and the batch's last offset."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for delta in (3, 70, 9000):
        builder.append(delta, NOW + delta, b"%d" % delta, b"v", [])
    buf = at(bytearray(builder.build()), 500)
    struct.pack_into(">i", buf, 23, 9500)
    batch = RecordBatch.parse(buf, check_crc=False)
    assert batch is not None
    assert batch.next_offset == 500 + 9501
    assert list(batch.split().offsets) == [503, 570, 9500]
    later = batch.split(504)
    assert (later.keys, list(later.offsets), later.timestamp(0)) == ([b"70", b"9000"], [570, 9500], NOW + 70)


def test_the_brokers_time_counts_where_the_topic_says_so() -> None:
    buf = theirs(PLAIN)
    struct.pack_into(">h", buf, 21, 0x08)
    batch = RecordBatch.parse(buf, check_crc=False)
    assert batch is not None
    assert batch.split().timestamp(0) == NOW + 1  # the batch's maximum


def test_reads_xerial_frames() -> None:
    """Java's snappy is framed; sarama's is not (kafka-python writes frames, this package does not)."""
    plain = theirs(PLAIN)
    framed = plain[:HEADER_BYTES] + snappy_encode(
        bytes(plain[HEADER_BYTES:]), xerial_compatible=True, xerial_blocksize=8
    )
    raw = plain[:HEADER_BYTES] + snappy_encode(bytes(plain[HEADER_BYTES:]), xerial_compatible=False)
    for buf in (framed, raw):
        struct.pack_into(">i", buf, 8, len(buf) - 12)
        struct.pack_into(">h", buf, 21, CODECS["snappy"])
        batch = RecordBatch.parse(buf, check_crc=False)
        assert batch is not None
        assert batch.split().keys == [b"bob", b"alice", b""]


def test_takes_the_batches_of_a_fetch_and_leaves_the_one_that_was_cut() -> None:
    whole = at(theirs(PLAIN), 10) + at(theirs(PLAIN), 13)
    for cut in (0, 1, 11, 60, len(theirs(PLAIN)) - 1):
        batches = list(parse_batches(whole + theirs(PLAIN)[:cut]))
        assert [batch.base_offset for batch in batches] == [10, 13]


def test_recognizes_markers() -> None:
    for kind, aborts in ((0, True), (1, False)):
        builder = DefaultRecordBatchBuilder(2, 0, True, 5, 0, -1, 1 << 20)
        builder.append(0, NOW, struct.pack(">hh", 0, kind), b"\x00" * 6, [])
        buf = bytearray(builder.build())
        struct.pack_into(">h", buf, 21, 0x30)
        batch = RecordBatch.parse(buf, check_crc=False)
        assert batch is not None
        assert batch.is_control
        assert batch.aborts() is aborts


def test_refuses_a_batch_whose_checksum_is_wrong() -> None:
    buf = at(theirs(PLAIN), 77)
    buf[-1] ^= 1
    with pytest.raises(CorruptBatchError, match="offset 77 fails its checksum"):
        RecordBatch.parse(buf)


def test_refuses_old_formats() -> None:
    buf = theirs(PLAIN)
    buf[16] = 1
    with pytest.raises(CorruptBatchError, match="format v1"):
        RecordBatch.parse(buf)


def test_damage_never_passes_as_records_nor_as_another_error(seed: int) -> None:
    """Behind a forged checksum: it splits into the batch's count of records, or it is CorruptBatchError."""
    draw = random.Random(seed)
    for name, records in CASES.items():
        for codec in CODECS.values():
            whole = theirs(records[:200], codec)
            for _ in range(40):
                buf = bytearray(whole)
                for _ in range(draw.randint(1, 4)):
                    buf[draw.randrange(HEADER_BYTES, len(buf))] = draw.randrange(256)
                batch = RecordBatch.parse(buf, check_crc=False)
                assert batch is not None, name
                with suppress(CorruptBatchError):
                    assert len(batch.split()) == batch.count, name
