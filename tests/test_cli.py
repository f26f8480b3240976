"""The installed command: help, wrong usage, exit codes, pipes, terminals, signals, start-up."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gokamsg
from gokamsg.commands.help import HELP
from gokamsg.config import SETTINGS, settings_of
from tests.conftest import OwnServer
from tests.helpers import Processes, eventually, free_port, gokamsg_argv, gokamsg_env, run_gokamsg
from tests.kafka_server import KafkaCluster

COMMANDS = sorted({command for row in SETTINGS for command in row.commands})


def test_help_lists_every_command_in_order() -> None:
    done = run_gokamsg("--help")
    listed = re.findall(r"^  ([a-z]+)  ", done.stdout.split("Commands:")[1], flags=re.MULTILINE)
    assert (done.returncode, done.stderr) == (0, "")
    commands = "up broker serve process loadgen send feed block unblock translate status verify topics quarantine"
    assert " ".join(listed) == commands
    assert run_gokamsg().stdout == done.stdout
    assert run_gokamsg("-h").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_shows_its_settings_and_no_others(command: str) -> None:
    done = run_gokamsg(*command.split(), "--help")
    assert done.returncode == 0, done
    offered = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", done.stdout, flags=re.MULTILINE)) - {"--help"}
    assert offered == {row.flag_of(command) for row in settings_of(command)}


def test_the_list_of_commands_is_not_cut() -> None:
    listed = run_gokamsg("--help").stdout + run_gokamsg("topics", "--help").stdout
    listed += run_gokamsg("quarantine", "--help").stdout
    assert "..." not in listed.split("Commands:", 1)[1].replace("[ARGS]...", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_can_be_typed(command: str) -> None:
    """They stand in its help as they are, begin with the command, and use its own options and arguments."""
    done = run_gokamsg(*command.split(), "--help")
    arguments = re.findall(r"^  ([A-Z]+)  ", done.stdout.partition("Options:")[0], flags=re.MULTILINE)
    flags = {row.flag_of(command): row.kind is bool for row in settings_of(command)}
    assert any(example.startswith(f"gokamsg {command}") for example in HELP[command].examples)
    for example in HELP[command].examples:
        assert f"\n    {example}\n" in done.stdout, "it is not shown as it is written"
        if not example.startswith("curl "):
            words = shlex.split(example.partition(" | ")[0])
            assert words[: 1 + len(command.split())] == ["gokamsg", *command.split()]
            rest, positional = iter(words[1 + len(command.split()) :]), 0
            for word in rest:
                if word.startswith("--"):
                    assert word in flags, example
                    if not flags[word]:
                        next(rest)
                else:
                    positional += 1
            assert positional == len(arguments), example
    assert "{" not in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gokamsg top", {"topics"}),
        ("gokamsg topics c", {"create"}),
        ("gokamsg process --ro", {"--role"}),
        ("gokamsg process --role f", {"filter"}),
        ("gokamsg process --role ", {"blocker", "collector", "detector", "filter", "translator", "all"}),
        ("gokamsg process --guarantee ", {"exactly-once", "at-least-once"}),
        ("gokamsg feed --f", {"--follow"}),
    ],
)
def test_the_shell_completes_commands_options_roles_and_choices(typed: str, offered: set[str]) -> None:
    number = len(typed.split()) - (not typed.endswith(" "))
    env = {"_GOKAMSG_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(number)}
    done = run_gokamsg(env=env)
    assert (done.returncode, done.stderr, set(done.stdout.split())) == (0, "", offered)


def test_completion_installs_itself_for_the_shell(tmp_path: Path) -> None:
    env = gokamsg_env({"HOME": str(tmp_path)})
    argv = ["bash", "-c", f"{sys.executable} -m gokamsg --install-completion && true"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_GOKAMSG_COMPLETE" in (tmp_path / ".bash_completions" / "gokamsg.sh").read_text()


def test_the_version_is_the_packages() -> None:
    assert run_gokamsg("--version").stdout == f"gokamsg {gokamsg.__version__}\n"


def test_wrong_usage_is_one_line_and_where_help_is() -> None:
    done = run_gokamsg("feed")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: 'USER' is missing.\nSee 'gokamsg feed --help'.\n"
    done = run_gokamsg("fed", "Alice")
    assert done.stderr == "Error: there is no command 'fed'. Did you mean 'feed'?\nSee 'gokamsg --help'.\n"
    assert run_gokamsg("process", "--rol", "filter").stderr.startswith(
        "Error: there is no option --rol. Did you mean --role?\n"
    )
    assert run_gokamsg("process", "--workers", "x").stderr.startswith(
        "Error: --workers is 'x'; it must be a whole number.\n"
    )
    assert run_gokamsg("feed", "Alice", "Bob").stderr.startswith("Error: there is no place for 'Bob'.\n")
    done = run_gokamsg("topics", "destroy")
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "See 'gokamsg topics --help'.")
    done = run_gokamsg("process", "--role", "filtr")
    roles = "blocker, collector, detector, filter, translator, all"
    assert (done.returncode, done.stderr) == (2, f"Error: there is no role 'filtr'. Roles: {roles}.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("feed", ""), "the user name is empty"),
        (("feed", "--", "-x"), "names are reserved"),
        (("send", "Bob", "y" * 2000, "x"), "2,000 bytes"),
        (("block", ""), "the user name is empty"),
        (("translate", "two words", "x"), "more than one word"),
        (("quarantine", "show", "message_sent"), "does not name a record"),
    ],
)
def test_names_are_checked_before_anything_is_done(arguments: tuple[str, ...], said: str) -> None:
    done = run_gokamsg(*arguments, "--brokers", "127.0.0.1:1") if arguments[1] != "--" else run_gokamsg(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_no_broker_is_one_line_with_its_remedy() -> None:
    done = run_gokamsg("feed", "Alice", "--brokers", f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert re.fullmatch(r"Error: no Kafka broker answers at 127\.0\.0\.1:\d+ \(.*connection refused\)\.", first)
    assert "--brokers" in second


def test_a_traceback_is_for_who_asks() -> None:
    silent = run_gokamsg("feed", "Alice", "--brokers", "127.0.0.1:1")
    asked = run_gokamsg("feed", "Alice", "--brokers", "127.0.0.1:1", "--debug")
    assert "Traceback" not in silent.stderr
    assert "Traceback" in asked.stderr
    assert asked.stderr.splitlines()[-2].startswith("Error: ")


def test_the_environment_sets_and_the_flag_wins() -> None:
    env = {"GOKAMSG_WORKERS": "0"}
    assert "--workers is 0" in run_gokamsg("process", env=env).stderr
    assert "--workers is 65" in run_gokamsg("process", "--workers", "65", env=env).stderr


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_gokamsg("serve", "--port", port, "--brokers", "127.0.0.1:1", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: cannot listen on 127.0.0.1:{port}: address already in use. Choose another with --port.\n"
    )


def on_terminal(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs the command on a terminal of 80 columns; the exit code, and what the terminal got."""
    main, side = pty.openpty()
    environment = gokamsg_env({"TERM": "xterm-256color", "COLUMNS": "80", **(env or {})})
    if env is None:
        environment.pop("NO_COLOR")
    with subprocess.Popen(gokamsg_argv(*arguments), stdin=side, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        seen = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if select.select([main], [], [], 0.5)[0]:
                    seen += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
        code = process.wait(10)
    os.close(main)
    return code, seen.decode()


def test_errors_are_red_on_a_terminal_unless_colour_is_unwanted() -> None:
    code, coloured = on_terminal("feed", "Alice", "--brokers", "127.0.0.1:1")
    assert code == 1
    assert "\x1b[1;31mError: \x1b[0m" in coloured
    _, plain = on_terminal("feed", "Alice", "--brokers", "127.0.0.1:1", env={"NO_COLOR": "1"})
    assert "no Kafka broker answers" in plain
    assert "31m" not in plain


def test_an_error_is_broken_between_words_on_a_terminal() -> None:
    _, seen = on_terminal("feed", "Alice", "--brokers", "127.0.0.1:1", env={"NO_COLOR": "1"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= 80
    assert "Apache Kafka with 'docker compose up', or name one with --brokers." in " ".join(plain.split())


def test_help_and_wrong_usage_need_no_heavy_imports() -> None:
    script = """
import sys
sys.argv = ["gokamsg", "--help"]
import os
os._exit = sys.exit
from gokamsg import cli
try:
    cli.main()
except SystemExit:
    pass
heavy = {"asyncio", "kafka", "flask", "httptools", "rich", "msgspec", "prometheus_client", "sqlitedict"}
heavy |= {"logging.handlers"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_commands_on_kafka(clean_cluster: KafkaCluster, run: Processes, tmp_path: Path) -> None:
    """One story in pipes: topics, a message there and back, a block, JSON, follow, status, and a clean end."""
    env = {"GOKAMSG_BROKERS": clean_cluster.address, "GOKAMSG_STATE_DIR": str(tmp_path)}

    def ok(*arguments: str) -> str:
        done = run_gokamsg(*arguments, env=env, timeout_s=60)
        assert done.returncode == 0, done
        return done.stdout

    assert ok("topics", "create").splitlines()[0] == "block_user: created, 8 partitions"
    assert ok("topics", "create").splitlines()[-1] == "translator-table: exists, 8 partitions"
    described = ok("topics", "describe").splitlines()
    assert described[0].split() == ["topic", "partitions", "replicas", "policy", "kept", "offsets", "bytes"]
    assert "co-partitioned: collector-table, message_received: 8 each" in described
    as_json = [json.loads(line) for line in ok("topics", "describe", "--json").splitlines()]
    assert {row["policy"] for row in as_json} == {"delete", "compact"}
    assert {row["bytes"] for row in as_json} == {0}

    nobody = run_gokamsg("feed", "Alice", env=env)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "Error: Alice not found! Nobody has written to them yet.\n"

    at = ("--metrics-host", "0.0.0.0", "--metrics-port", "0")
    workers = run.gokamsg("process", "--role", "collector", *at, name="workers", env=env)
    workers.wait_line(r"^collector: running, 8 partitions \(0-7\), exactly-once$", timeout_s=60)
    assert ok("send", "--direct", "Bob", "Alice", "a\nb") == "Sent to Alice (message_received/7, offset 0).\n"
    shown = "Latest messages for Alice\n0        Bob: a\\nb\n"
    eventually("the feed shows it", lambda: run_gokamsg("feed", "Alice", env=env).stdout == shown, timeout_s=20)
    assert json.loads(ok("feed", "Alice", "--json")) == {"From": "Bob", "To": "Alice", "Content": "a\nb"}

    follower = run.gokamsg("feed", "Alice", "--follow", name="follower", env=env)
    follower.wait_line("0        Bob")
    ok("send", "--direct", "Eve", "Alice", "c")
    follower.wait_line("^1        Eve: c$")
    follower.signal(signal.SIGINT)
    assert follower.wait() == 130
    assert follower.stderr() == ""

    sizes = {row["topic"]: row["bytes"] for row in map(json.loads, ok("topics", "describe", "--json").splitlines())}
    assert sizes["message_received"] > 100
    assert sizes["block_user"] == 0

    place = {"topic": "block_user", "partition": 4, "offset": 0}
    assert json.loads(ok("block", "Bob", "--json")) == {"key": "Bob", **place}
    rows = [line.split(maxsplit=5) for line in ok("status").splitlines()]
    assert next(row[:4] for row in rows if row[0] == "collector") == ["collector", "1", "8", "0"]
    assert next(row[5].split("  ") for row in rows if row[0] == "detector") == ["never ran", "0"]

    metrics = workers.wait_line(r"metrics: (http://0\.0\.0\.0:\S+)")[1]
    import urllib.request

    with urllib.request.urlopen(metrics, timeout=10) as answer:
        assert 'gokamsg_worker_records_total{worker="collector"} 2.0' in answer.read().decode()
    workers.signal(signal.SIGINT)
    assert workers.wait() == 0
    assert workers.stderr().splitlines()[-1] == "stopped; 2 records handled"


@pytest.mark.any_broker
def test_status_goes_on_watching_when_the_broker_is_away(own_cluster: OwnServer, run: Processes) -> None:
    watch = run.gokamsg("status", "--watch", "--json", name="watch", env={"GOKAMSG_BROKERS": own_cluster.address})
    watch.wait_line('"group": "collector"')
    own_cluster.kill()
    watch.wait_line("; trying again$", timeout_s=60)
    assert watch.running
    seen = len(watch.stdout().splitlines())
    own_cluster.start()
    eventually("there are new rows", lambda: len(watch.stdout().splitlines()) > seen, timeout_s=60)
    watch.signal(signal.SIGINT)
    assert watch.wait() == 130


@pytest.mark.any_broker
def test_a_reader_that_goes_away_is_no_error(clean_cluster: KafkaCluster) -> None:
    env = gokamsg_env({"GOKAMSG_BROKERS": clean_cluster.address})
    command = f"{sys.executable} -m gokamsg topics create | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "block_user: created, 8 partitions\n"
