"""Compression of record batches: Kafka's codec numbers, and the bytes of each as other clients write them.

Pure. Reads what Java, librdkafka, sarama and kafka-python produce: gzip, snappy raw (sarama, librdkafka) and in xerial
frames (Java), lz4 frames, zstd with or without a content size. Writes snappy raw and lz4 with independent blocks,
which every Kafka client reads.
"""

import gzip
import io
from collections.abc import Callable

import lz4.frame
import snappy
import zstandard

from gokamsg.errors import CorruptBatchError

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""Name as in `compression.type` -> number in the batch's attributes."""

_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = 16  # magic, version and compatible version; the last two are written in either byte order


def decompress(codec: int, data: bytes) -> bytes:
    """The records section of a batch; CorruptBatchError when it is not what the codec says."""
    if codec == 0:
        return data
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise CorruptBatchError(f"record batch uses compression codec {codec}, which does not exist in Kafka")
    try:
        return decoder(data)
    except Exception as error:  # each library raises its own kinds; all mean the same here
        raise CorruptBatchError(f"record batch cannot be decompressed (codec {codec}): {error}") from error


def compress(codec: int, data: bytes | bytearray | memoryview) -> bytes:
    """The compressed records section of a batch."""
    encoder = _ENCODERS[codec]
    return encoder(bytes(data))


def _snappy_decompress(data: bytes) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return bytes(snappy.decompress(data))
    blocks = []
    pos = _XERIAL_HEADER
    while pos < len(data):
        size = int.from_bytes(data[pos : pos + 4], "big")
        pos += 4
        blocks.append(bytes(snappy.decompress(data[pos : pos + size])))
        pos += size
    return b"".join(blocks)


def _zstd_decompress(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        return bytes(reader.read())


_DECODERS: dict[int, Callable[[bytes], bytes]] = {
    1: gzip.decompress,
    2: _snappy_decompress,
    3: lambda data: bytes(lz4.frame.decompress(data)),
    4: _zstd_decompress,
}
_ENCODERS: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: gzip.compress(data, compresslevel=6),
    2: lambda data: bytes(snappy.compress(data)),
    3: lambda data: bytes(lz4.frame.compress(data, block_linked=False)),
    4: lambda data: zstandard.ZstdCompressor().compress(data),
}
