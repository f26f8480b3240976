"""compose.yaml: what it runs exists, with the options and settings that it names. No Docker is needed to tell.

tests/system/test_cluster.py runs all of it.
"""

import importlib.resources
import json
import re

import jsonschema
import pytest

from gokamsg.config import SETTINGS, settings_of
from gokamsg.messaging.roles import ROLES
from tests import compose
from tests.compose import BROKERS, COMPOSE, OURS, SERVICES
from tests.helpers import run_gokamsg


def test_the_file_follows_the_schema_of_compose() -> None:
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**COMPOSE, "services": {"serve": {"imagee": "gokamsg"}}}, schema)


def test_the_service_and_every_role_are_there() -> None:
    roles = {service["command"][2] for service in OURS.values() if service["command"][0] == "process"}
    assert roles == set(ROLES)
    assert "serve" in OURS


@pytest.mark.parametrize("name", OURS)
def test_a_command_has_the_options_that_it_is_given(name: str) -> None:
    done = run_gokamsg(*OURS[name]["command"], "--help")
    assert done.returncode == 0, done
    flags = {row.flag for row in settings_of(OURS[name]["command"][0])}
    assert {word for word in OURS[name]["command"] if word.startswith("--")} <= flags


def test_the_settings_in_the_environment_exist_and_are_the_commands_own() -> None:
    for service in OURS.values():
        known = {row.environment for row in SETTINGS if service["command"][0] in row.commands}
        assert service["environment"].keys() <= known


def test_the_addresses_are_those_of_the_brokers() -> None:
    addresses = {f"{name}:9092" for name in BROKERS}
    for service in OURS.values():
        assert set(service["environment"]["GOKAMSG_BROKERS"].split(",")) == addresses
        assert service["depends_on"].keys() == BROKERS.keys()
    for name, service in BROKERS.items():
        assert service["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{name}:9092"
        number = service["environment"]["KAFKA_NODE_ID"]
        assert f"{number}@{name}:9093" in service["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"]


def test_one_broker_may_be_lost() -> None:
    for service in BROKERS.values():
        environment = service["environment"]
        for replicas, needed in (
            ("KAFKA_DEFAULT_REPLICATION_FACTOR", "KAFKA_MIN_INSYNC_REPLICAS"),
            ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"),
        ):
            assert environment[replicas] == len(BROKERS) == environment[needed] + 1
        assert environment["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"] == len(BROKERS)


def test_the_brokers_are_of_one_release() -> None:
    """test_cluster.py runs that very release, so it fails where there is none."""
    assert {service["image"] for service in BROKERS.values()} == {f"apache/kafka:{compose.KAFKA_VERSION}"}
    assert re.fullmatch(r"4\.\d+\.\d+", compose.KAFKA_VERSION)


def test_every_service_has_a_health_check_and_what_can_be_scaled_takes_no_port_of_the_host() -> None:
    assert [name for name, service in SERVICES.items() if not service["healthcheck"]["test"]] == []
    assert [name for name in compose.ROLES if "ports" in SERVICES[name] or "container_name" in SERVICES[name]] == []


def test_every_volume_is_declared_and_what_the_image_copies_is_there() -> None:
    used = {volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service["volumes"]}
    assert used == COMPOSE["volumes"].keys()
    copied = re.findall(r"^COPY (.+) \S+$", COMPOSE["x-gokamsg"]["build"]["dockerfile_inline"], flags=re.MULTILINE)
    for names in copied:
        assert all((compose.FILE.parent / name).exists() for name in names.split())
