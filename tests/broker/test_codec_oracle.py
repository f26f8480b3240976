"""The broker's codec against kio, which is generated from Apache Kafka's own schemas and shares no code with it.

For each API and version that the broker offers: seeded random messages (extreme integers, empty, null and
long strings, nested arrays, tagged fields set and unset) are encoded by kio, decoded as the broker or a client decodes
them, encoded again, and the bytes compared.
"""

import datetime
import io
import random
import uuid
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from kio.index import UnknownEntity, load_payload_module
from kio.schema.errors import ErrorCode
from kio.serial import entity_writer
from kio.static.constants import EntityType

from gokamsg.broker import registry
from gokamsg.broker.decoding import Decoders

MESSAGES = 12
SEEDS = (1, 2, 3)

API_VERSIONS, DELETE_TOPICS = 18, 20
WIDTHS = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
TEXTS = ("", "a", "t-0", "grüße", "名前", "x" * 300)
MAX_TIME_MS = 253_402_300_799_000  # the last second that datetime knows


class Chance:
    """Random values for kio's dataclass fields."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def message(self, entity: Any) -> Any:
        return entity(**{field.name: self._field(field) for field in fields(entity)})

    def _field(self, field: Any) -> Any:
        if "tag" in field.metadata and self.random.random() < 0.5:
            return field.default if field.default is not field.default_factory else self._typed(field.type, field)
        return self._typed(field.type, field)

    def _typed(self, kind: Any, field: Any) -> Any:
        if get_origin(kind) in (UnionType, Union):
            inner = next(one for one in get_args(kind) if one is not NoneType)
            if self.random.random() < 0.3 and "tag" not in field.metadata:
                return None
            return self._typed(inner, field)
        if get_origin(kind) is tuple:
            inner = get_args(kind)[0]
            return tuple(self._typed(inner, field) for _ in range(self.random.choice((0, 1, 2, 5))))
        if hasattr(kind, "__dataclass_fields__"):
            return self.message(kind)
        return self._value(field.metadata["kafka_type"])

    def _value(self, kafka_type: str) -> Any:
        chance = self.random
        if kafka_type in WIDTHS:
            high = (1 << WIDTHS[kafka_type]) - 1
            return chance.choice((0, 1, -1, high, -high - 1, chance.randint(-high - 1, high)))
        match kafka_type:
            case "uint16":
                return chance.choice((0, 1, 65535))
            case "float64":
                return chance.choice((0.0, -1.5, 1e300))
            case "bool":
                return chance.random() < 0.5
            case "string":
                return chance.choice(TEXTS)
            case "bytes" | "records":
                return chance.randbytes(chance.choice((0, 1, 40, 300)))
            case "uuid":
                return uuid.UUID(int=chance.getrandbits(128))
            case "error_code":
                return chance.choice(list(ErrorCode))
            case "timedelta_i32":
                return datetime.timedelta(milliseconds=chance.choice((0, -1, 2**31 - 1, chance.randint(0, 10**6))))
            case "timedelta_i64":
                return datetime.timedelta(milliseconds=chance.choice((0, -1, chance.randint(0, 10**9))))
            case "datetime_i64":
                seconds = chance.randint(0, MAX_TIME_MS // 1000)
                return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        raise AssertionError(f"kio's type {kafka_type!r} is not known here")


def known_to_kio(key: int, version: int) -> bool:
    try:
        load_payload_module(key, version, EntityType.request)
    except UnknownEntity:
        return False
    return True


def every_version(*, known: bool) -> list[tuple[int, int]]:
    """Every (API key, version) that the broker offers and kio knows, or does not know."""
    return [
        (key, version)
        for key, (_, lowest, highest) in registry.APIS.items()
        for version in range(lowest, highest + 1)
        if known_to_kio(key, version) is known
    ]


def kio_class(key: int, version: int, kind: Any) -> Any:
    module = load_payload_module(key, version, kind)
    return next(
        one for one in vars(module).values() if isinstance(one, type) and getattr(one, "__type__", None) is kind
    )


def encoded(message: Any) -> bytes:
    buffer = io.BytesIO()
    entity_writer(type(message))(buffer, message)
    return buffer.getvalue()


def test_only_versions_that_apache_kafka_has_dropped_are_left_out() -> None:
    """Old librdkafka compresses only if Produce 0 is listed; sarama at V1 asks for DescribeConfigs 0."""
    assert every_version(known=False) == [(0, 0), (0, 1), (0, 2), (32, 0)]


@pytest.mark.parametrize(("key", "version"), every_version(known=True))
def test_requests_are_read_as_kafka_writes_them(key: int, version: int) -> None:
    entity, row, decoders = kio_class(key, version, EntityType.request), registry.find(key, version), Decoders()
    assert row is not None
    for seed in SEEDS:
        chance = Chance(f"{key}/{version}/{seed}")
        for _ in range(MESSAGES):
            message = chance.message(entity)
            data = encoded(message)
            decoded = decoders.decode(row.request, version, memoryview(data), 0)
            if key == DELETE_TOPICS:  # kafka.protocol reads it, but cannot write what it has read; a broker never does
                continue
            assert decoded.encode() == data, f"seed {seed}: {message!r}"


@pytest.mark.parametrize(("key", "version"), every_version(known=True))
def test_responses_are_written_as_kafka_reads_them(key: int, version: int) -> None:
    entity, row = kio_class(key, version, EntityType.response), registry.find(key, version)
    assert row is not None
    for seed in SEEDS:
        chance = Chance(f"{key}/{version}/{seed}")
        for _ in range(MESSAGES):
            message = chance.message(entity)
            if key == API_VERSIONS and message.error_code.value:
                continue  # read as version 0 by design: the answer to a version that the broker does not know
            data = encoded(message)
            assert row.response.decode(data, version=version).encode() == data, f"seed {seed}: {message!r}"
