"""The table of APIs: what each file says is what it registers, and what a client is told is what is served."""

import importlib
import re
from pathlib import Path

import pytest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse

from gokamsg.broker import registry
from gokamsg.broker.registry import Api
from gokamsg.broker.runner import RunningBroker
from tests.broker.raw_client import RawClient

TABLE = {row.key: row for row in registry.load()}
ROWS = pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)


@ROWS
def test_docstring_states_the_registered_versions(row: Api) -> None:
    doc = importlib.import_module(row.module).__doc__ or ""
    assert doc.startswith(f"{row.name}, versions {row.min_version}-{row.max_version}.\n")
    assert "\nBehaviour: " in doc
    assert "\nUnlike Kafka: " in doc


@ROWS
def test_file_name_is_key_and_name(row: Api) -> None:
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", row.name).lower()
    assert row.module.rsplit(".", 1)[1] == f"k{row.key:02d}_{snake}"


@ROWS
def test_request_and_response_are_of_the_key_and_know_the_versions(row: Api) -> None:
    assert row.request.API_KEY == row.response.API_KEY == row.key
    assert row.request.name == f"{row.name}Request"
    assert row.max_version <= row.request.max_version


def test_every_file_registers_one_api() -> None:
    files = {path.stem for path in Path(registry.__file__).parent.joinpath("api").glob("k*.py")}
    assert files == {row.module.rsplit(".", 1)[1] for row in TABLE.values()}


def test_a_key_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="API key 3 is registered twice"):
        registry.api(3, MetadataRequest, MetadataResponse)(lambda *_: None)


def test_versions_that_change_how_clients_run_transactions_are_not_served() -> None:
    """KIP-890: clients that see these stop adding partitions to their transactions themselves."""
    highest = {row.key: row.max_version for row in TABLE.values()}
    assert highest[0] < 12
    assert highest[26] < 5
    assert highest[28] < 5
    assert highest[22] < 6


@pytest.mark.parametrize("version", range(5))
def test_api_versions_lists_the_table(broker: RunningBroker, version: int) -> None:
    with RawClient(broker.address) as client:
        answer = client.ask(
            ApiVersionsRequest(client_software_name="test", client_software_version="1"), ApiVersionsResponse, version
        )
    assert answer.error_code == 0
    told = {(row.api_key, row.min_version, row.max_version) for row in answer.api_keys}
    assert told == {(row.key, row.min_version, row.max_version) for row in TABLE.values()}


def test_produce_is_listed_from_version_0() -> None:
    """Old librdkafka sends gzip, snappy and lz4 topics uncompressed unless it sees the versions that had them."""
    assert TABLE[0].min_version == 0


def test_too_new_api_versions_is_answered_in_version_0_with_the_list(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        frame = b"\x00\x12\x00\x63\x00\x00\x00\x07\x00\x01x\x00\x02y\x02z\x00"  # key 18, version 99, correlation id 7
        client.socket.sendall(len(frame).to_bytes(4, "big") + frame)
        answer = client.receive(ApiVersionsResponse, 0, 7)
        assert answer.error_code == 35
        assert {row.api_key for row in answer.api_keys} == set(TABLE)
        assert client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0  # the connection lives on
