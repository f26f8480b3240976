"""The codecs of record batches, bounded: a small batch cannot be made to fill the memory.

The libraries are imported when a batch first needs them, so that they cost nothing at start-up. Pure; any thread.
"""

from __future__ import annotations

import struct
import zlib

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
MAX_OUTPUT = 32 * 1024 * 1024  # what clients pack into a batch of the default limit is a few MiB
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER = _XERIAL + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK = 32 * 1024
_I32 = struct.Struct(">i")


class CompressionError(Exception):
    """The bytes are not what their codec says, or too many."""


def decompress(codec: int, body: bytes, *, max_output: int = MAX_OUTPUT) -> bytes:
    """The records of a batch's body; raises CompressionError."""
    try:
        if codec == NONE:
            return body
        if codec == GZIP:
            stream = zlib.decompressobj(31)
            out = stream.decompress(body, max_output)
            complete = stream.eof
        elif codec == SNAPPY:
            return _unsnap(body, max_output)
        elif codec == LZ4:
            import lz4.frame

            frame = lz4.frame.LZ4FrameDecompressor()
            out = frame.decompress(body, max_output)
            complete = frame.eof
        elif codec == ZSTD:
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
                out = reader.read(max_output)
                complete = not reader.read(1)
        else:
            raise CompressionError(f"unknown codec {codec}")
    except CompressionError:
        raise
    except Exception as error:  # each library has its own classes
        raise CompressionError(f"the records cannot be decompressed: {error}") from error
    if not complete:
        raise CompressionError(f"the records are damaged or larger than {max_output} bytes")
    return bytes(out)


def compress(codec: int, body: bytes) -> bytes:
    """The body of a batch from its records."""
    if codec == GZIP:
        stream = zlib.compressobj(wbits=31)
        return stream.compress(body) + stream.flush()
    if codec == SNAPPY:
        import snappy

        parts = [_XERIAL_HEADER]
        for start in range(0, len(body), _XERIAL_BLOCK):
            block = snappy.compress(body[start : start + _XERIAL_BLOCK])
            parts += (_I32.pack(len(block)), block)
        return b"".join(parts)
    if codec == LZ4:
        import lz4.frame

        return bytes(lz4.frame.compress(body, block_linked=False))
    if codec == ZSTD:
        import zstandard

        return bytes(zstandard.ZstdCompressor().compress(body))
    return body


def _unsnap(body: bytes, max_output: int) -> bytes:
    if not body.startswith(_XERIAL):
        return _unsnap_block(body, max_output)
    parts: list[bytes] = []
    position = len(_XERIAL_HEADER)
    while position < len(body):
        size = _I32.unpack_from(body, position)[0]
        position += 4
        if size < 0 or position + size > len(body):
            raise CompressionError("a snappy block reaches past its batch")
        part = _unsnap_block(body[position : position + size], max_output)
        max_output -= len(part)
        parts.append(part)
        position += size
    return b"".join(parts)


def _unsnap_block(block: bytes, max_output: int) -> bytes:
    import snappy

    announced = shift = 0
    for byte in block[:5]:
        announced |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    if announced > max_output:
        raise CompressionError(f"the records are larger than {max_output} bytes")
    return bytes(snappy.decompress(block))
