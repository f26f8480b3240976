"""Request decoders that a hostile client cannot make expensive, made from kafka.protocol's own.

kafka.protocol generates a decoder's source for each request and version. It trusts what it reads: a length may be an
endless varint, an array may announce more elements than memory holds, a string may reach past the frame. The same
source is compiled here with three bounds put in: five bytes per varint, MAX_ELEMENTS array elements per request, and
MAX_TAG_BYTES for one structure's tagged fields. decode() also refuses a request that reaches past its frame; bytes that
are left over are allowed, because librdkafka sends some.

Threads: the broker's loop only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kafka.protocol.schemas.fields.codegen import CodegenContext

MAX_ELEMENTS = 200_000
MAX_TAG_BYTES = 16_384

_SHIFT = re.compile(r"^(\s*)(_sh\d+) \+= 7$", re.MULTILINE)
_LOOP = re.compile(r"in range\((_n\d+)\):$", re.MULTILINE)
_TAGS = re.compile(r"_BytesIO\(bytes\(data\[pos:\]\)\)")

Decoder = Callable[[memoryview, int], tuple[Any, int]]


class DecodeError(Exception):
    """The bytes are not a request of this kind and version."""


class _Budget:
    """Array elements that the request being decoded may still have."""

    def __init__(self) -> None:
        self.left = MAX_ELEMENTS

    def spend(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise DecodeError(f"the request has more than {MAX_ELEMENTS} array elements")
        return count


class Decoders:
    """The decoders, compiled when they are first needed."""

    def __init__(self) -> None:
        self._budget = _Budget()
        self._decoders: dict[tuple[int, int], Decoder] = {}

    def decode(self, request: Any, version: int, frame: memoryview, position: int) -> Any:
        """The request whose body starts at position; raises DecodeError."""
        key = (request.API_KEY, version)
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = self._compile(request, version)
        self._budget.left = MAX_ELEMENTS
        try:
            decoded, end = decoder(frame, position)
        except DecodeError:
            raise
        except Exception as error:  # struct.error, IndexError, UnicodeDecodeError, ValueError: whatever bytes provoke
            raise DecodeError(f"{request.name} version {version} cannot be decoded: {error}") from error
        if end > len(frame):
            raise DecodeError(f"{request.name} version {version} reaches {end - len(frame)} bytes past its frame")
        return decoded

    def _compile(self, request: Any, version: int) -> Decoder:
        flexible = request.flexible_version_q(version)
        structure = request._struct
        context = CodegenContext()
        context.lines.append("def _decode(data, pos):")
        # the structure refers to its class by a weak proxy, which object.__new__ does not accept
        saved, structure._data_class = structure._data_class, request[None]
        try:
            structure.emit_decode_from(context, "obj", "    ", version=version, compact=flexible, tagged=flexible)
        finally:
            structure._data_class = saved
        context.emit("    ", "return obj, pos")
        source = _SHIFT.sub(r"\1\2 += 7\n\1if \2 > 28: raise ValueError('a varint too long')", context.source())
        source = _LOOP.sub(r"in range(_spend(\1)):", source)
        source = _TAGS.sub(f"_BytesIO(bytes(data[pos:pos + {MAX_TAG_BYTES}]))", source)
        context.globs["_spend"] = self._budget.spend
        exec(compile(source, f"<{request.name}_v{version}>", "exec"), context.globs)
        decoder: Decoder = context.globs["_decode"]
        return decoder
