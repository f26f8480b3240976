"""Record batches and what is in them: read back by kafka-python's own reader, in every codec."""

import pytest
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from gokamsg.broker import batch as batches
from gokamsg.broker import compression, records
from gokamsg.broker.batch import BatchError, read_header, validate
from gokamsg.broker.compression import CompressionError, compress, decompress
from tests.broker.raw_client import make_batch

PAIRS = [(b"a", b"1"), (b"b", None), (None, b"3"), (b"", b""), (b"k" * 300, b"v" * 70_000)]
CODECS = pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])


def built(codec: int, pairs: list[tuple[bytes | None, bytes | None]]) -> bytes:
    """A batch made by kafka-python's producer code."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=1 << 22)
    for index, (key, value) in enumerate(pairs):
        builder.append(timestamp=1_000 + index, key=key, value=value)
    builder.close()
    return bytes(builder.buffer())


@CODECS
def test_walk_finds_what_the_producer_wrote(codec: int) -> None:
    batch = built(codec, PAIRS)
    header = validate(batch, max_bytes=1 << 22)
    assert header.compression == codec
    found = list(records.walk(records.body_of(batch, header), header.record_count))
    assert [record.key for record in found] == [key for key, _ in PAIRS]
    assert [record.tombstone for record in found] == [value is None for _, value in PAIRS]
    assert [record.offset_delta for record in found] == list(range(len(PAIRS)))
    assert [header.base_timestamp + record.timestamp_delta for record in found] == [
        1_000 + i for i in range(len(PAIRS))
    ]


@CODECS
def test_survivors_are_read_at_their_offsets_by_clients(codec: int) -> None:
    batch = built(codec, PAIRS)
    header = read_header(batch)
    body = records.body_of(batch, header)
    kept = [record for record in records.walk(body, header.record_count) if record.offset_delta in (1, 4)]
    survivors = b"".join(body[record.start : record.end] for record in kept)
    rewritten = batches.seal(header._replace(record_count=2, base_offset=100), compress(codec, survivors))
    read = MemoryRecords(rewritten).next_batch()
    assert read.validate_crc()
    assert [(record.offset, record.key, record.value) for record in read] == [
        (101, b"b", None),
        (104, b"k" * 300, b"v" * 70_000),
    ]


@CODECS
def test_compression_goes_both_ways(codec: int) -> None:
    body = b"some records " * 10_000
    assert decompress(codec, compress(codec, body)) == body


@pytest.mark.parametrize("codec", range(1, 5), ids=["gzip", "snappy", "lz4", "zstd"])
def test_bomb_is_refused(codec: int) -> None:
    bomb = compress(codec, bytes(8_000_000))
    with pytest.raises(CompressionError):
        decompress(codec, bomb, max_output=1_000_000)


@pytest.mark.parametrize("codec", range(1, 5), ids=["gzip", "snappy", "lz4", "zstd"])
def test_garbage_is_refused(codec: int) -> None:
    with pytest.raises(CompressionError):
        decompress(codec, b"\x82SNAPPY\x00 and then nothing that any codec would have written")
    if codec != compression.ZSTD:  # a zstd stream that is cut gives what it has; the records then do not fit
        with pytest.raises(CompressionError):
            decompress(codec, compress(codec, b"x" * 100)[:-5])


def test_placed_batch_keeps_its_checksum() -> None:
    batch = make_batch([(b"k", b"v")])
    placed = batches.place(batch, read_header(batch), 12_345)
    assert validate(placed, max_bytes=1 << 20).base_offset == 12_345
    assert placed[16:] == batch[16:]
    assert read_header(placed).leader_epoch == 0


@pytest.mark.parametrize("commit", [True, False])
def test_marker_is_one_that_clients_understand(commit: bool) -> None:
    placed = batches.marker(
        base_offset=7, now_ms=99, producer_id=3, producer_epoch=2, commit=commit, coordinator_epoch=4
    )
    assert batches.marker_commits(placed) is commit
    read = MemoryRecords(placed).next_batch()
    assert read.validate_crc()
    assert read.is_control_batch
    assert read.is_transactional
    assert (read.producer_id, read.producer_epoch, read.base_offset) == (3, 2, 7)
    (record,) = list(read)
    assert record.key == b"\x00\x00\x00" + (b"\x01" if commit else b"\x00")
    assert record.value == b"\x00\x00\x00\x00\x00\x04"


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_records_that_do_not_fit_are_refused(cut: int) -> None:
    batch = make_batch([(b"key", b"value")] * 3)
    body = records.body_of(batch, read_header(batch))
    with pytest.raises(BatchError):
        list(records.walk(body[: len(body) - 1 - cut], 3))
    with pytest.raises(BatchError):
        list(records.walk(body, 4))


def test_first_record_at_or_after_a_time() -> None:
    batch = make_batch([(b"k", b"v")] * 4, timestamps=[100, 300, 200, 400])
    assert records.first_at(batch, 100) == (0, 100)
    assert records.first_at(batch, 150) == (1, 300)
    assert records.first_at(batch, 400) == (3, 400)
    assert records.first_at(batch, 401) is None


def test_codec_numbers_are_kafkas() -> None:
    assert (compression.GZIP, compression.SNAPPY, compression.LZ4, compression.ZSTD) == (1, 2, 3, 4)
