"""The settings table: defaults, checks, durations, client properties files, and what is rendered from it."""

from pathlib import Path

import pytest

from gokamsg.config import (
    SETTINGS,
    Settings,
    load_client_properties,
    parse_duration_ms,
    render_settings,
    secrets_of,
    settings_of,
)
from gokamsg.errors import UsageError


def test_every_setting_has_a_command_and_a_sentence() -> None:
    assert len({row.flag for row in SETTINGS}) == len(SETTINGS)
    assert all(row.commands and row.help.endswith(".") for row in SETTINGS)
    assert all(" " not in row.environment and row.environment.isupper() for row in SETTINGS)


def test_a_commands_own_settings_come_first() -> None:
    assert [row.flag for row in settings_of("feed")] == [
        *("--follow", "--brokers", "--kafka-config", "--state-dir", "--json", "--debug"),
    ]


def test_the_rendered_table_has_a_row_for_each_setting() -> None:
    lines = render_settings().splitlines()
    assert len(lines) == 2 + len(SETTINGS)
    assert all(
        f"`{row.flag_of(row.commands[-1])}` | `{row.environment}`" in lines[2 + i] for i, row in enumerate(SETTINGS)
    )
    port = next(line for line in lines if "GOKAMSG_BROKER_PORT" in line)
    assert port.startswith("| `--port`; up: `--broker-port` | ")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"role": ("filtr",)}, "there is no role 'filtr'. Roles: blocker, collector, detector, filter, "),
        ({"workers": 0}, "--workers is 0; it must be at least 1."),
        ({"port": 65536}, "--port is 65536; it must be at most 65,535."),
        ({"detect_share": 1.5}, "--detect-share is 1.5; it must be at most 1."),
        ({"detect_share": float("nan")}, "--detect-share is nan"),
        ({"rate": 0.0}, "--rate is 0.0; it must be at least 0.01."),
        ({"guarantee": "maybe"}, "--guarantee is 'maybe'; it can be exactly-once or at-least-once."),
        ({"transaction_timeout": "1s"}, "--transaction-timeout is '1s'; it must be at least 3s."),
        ({"transaction_timeout": "1h"}, "--transaction-timeout is '1h'; it must be at most 900s."),
        ({"retention": "soon"}, "--retention is 'soon'; write a number and a unit"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings(**values)  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_roles_are_all_unless_some_are_named() -> None:
    assert Settings().roles == ("blocker", "collector", "detector", "filter", "translator")
    assert Settings(role=("all",)).roles == Settings().roles
    assert Settings(role=("filter", "blocker", "filter")).roles == ("filter", "blocker")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("1.5m", 90_000), ("2 h", 7_200_000), ("7d", 604_800_000)],
)
def test_durations_have_units(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text, "--x") == milliseconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1e3s", "١s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--x is"):
        parse_duration_ms(text, "--x")


def test_client_properties_are_read_as_java_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text(
        "# a comment\n! another\n\nsecurity.protocol = SASL_SSL\nsasl.password=a=b#c\n"
        'sasl.jaas.config=Module required \\\n    username="u" \\\n    password="p";\nempty=\n'
    )
    assert load_client_properties(str(file)) == {
        "security.protocol": "SASL_SSL",
        "sasl.password": "a=b#c",
        "sasl.jaas.config": 'Module required username="u" password="p";',
        "empty": "",
    }
    assert load_client_properties(None) == {}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x=a", "a"),
        ("x: a", "a"),
        ("x a b", "a b"),
        ("  x  =  a = b  ", "a = b"),
        (r"x=a\\b", r"a\b"),
        (r"x=\"a\"", '"a"'),
        (r"x=\u00e9\t.", "é\t."),
        ("x=a\\\n   b", "ab"),
        ("x=a\\\r\n   b\r\n", "ab"),
        (r"\x=a\\", "a\\"),
    ],
)
def test_separators_and_escapes_are_javas(tmp_path: Path, line: str, value: str) -> None:
    file = tmp_path / "client.properties"
    file.write_bytes(line.encode())
    assert load_client_properties(str(file)) == {"x": value}


def test_secrets_are_told_from_other_properties() -> None:
    jaas = 'Module required username="u" password="p\\"q";'
    properties = {"sasl.password": "s", "ssl.key.password": "k", "sasl.jaas.config": jaas, "sasl.username": "u"}
    assert set(secrets_of(properties)) == {"s", "k", jaas, 'p\\"q', 'p"q'}
    assert secrets_of({"sasl.password": "", "security.protocol": "SSL"}) == ()


def test_files_that_are_no_properties_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: no such file"):
        load_client_properties(str(tmp_path / "absent"))
    file = tmp_path / "bad"
    file.write_text("a=b\nnonsense\n")
    with pytest.raises(UsageError, match="line 2 is not of the form name=value"):
        load_client_properties(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_client_properties(str(file))


def test_the_state_directory_is_the_users_unless_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().state_path == tmp_path / "gokamsg"
    assert Settings(state_dir="~/x").state_path == Path("~/x").expanduser()
