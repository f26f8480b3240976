"""The README is run: its tutorial against a real Apache Kafka, and what it names against what there is.

How the tutorial's ```console blocks are read:

- A line that starts with `$ ` is a command, run by bash; a trailing backslash continues it. The lines after it are its
  output (stdout and stderr together); `...` stands for anything.
- ` &` at the end starts it in the background; its output lines must then appear within 60 s. It runs to the end of the
  tutorial, or until a later background command takes its place (the same one, or another `gokamsg serve`).
- A command that only reads (feed, status, topics describe, curl without a body) is repeated for up to 20 s until its
  output is as shown: what it reads takes its way through Kafka.
- localhost:8080 and localhost:9092 stand for the ports that the test got.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import gokamsg
from gokamsg.broker.registry import render_apis
from gokamsg.config import SETTINGS, render_settings
from tests.helpers import Process, Processes, eventually, free_port, gokamsg_env, run_gokamsg
from tests.kafka_server import KafkaCluster

README = Path(__file__).parent.parent / "README.md"
READS = re.compile(r"^(gokamsg (feed|status|topics describe)\b|curl (?!.*(\s-d|--data|--json|-X ?POST)))")


@dataclass
class Command:
    text: str
    line: int
    expected: list[str] = field(default_factory=list)

    @property
    def background(self) -> bool:
        return self.text.endswith(" &")


def _text() -> str:
    return README.read_text(encoding="utf-8")


def _section(heading: str) -> tuple[int, list[str]]:
    """The first section whose heading has the word: the number of its first line, and its lines."""
    lines = _text().splitlines()
    for start, line in enumerate(lines):
        found = re.match(r"(#+) .*", line)
        if found and heading in line.lower():
            level = len(found[1])
            rest = lines[start + 1 :]
            fenced = False
            for length, following in enumerate(rest):
                fenced ^= following.startswith("```")
                if not fenced and re.match(rf"#{{1,{level}}} ", following):
                    return start + 2, rest[:length]
            return start + 2, rest
    pytest.fail(f"README.md has no section with {heading!r} in its heading")


def _commands(first_line: int, lines: list[str]) -> list[Command]:
    commands: list[Command] = []
    inside = continued = False
    for number, line in enumerate(lines, start=first_line):
        if line.startswith("```"):
            inside = not inside and line.startswith("```console")
        elif inside and continued:
            commands[-1].text = commands[-1].text.removesuffix("\\") + line.strip()
        elif inside and line.startswith("$ "):
            commands.append(Command(line[2:].strip(), number))
        elif inside and commands:
            commands[-1].expected.append(line)
        continued = inside and bool(commands) and commands[-1].text.endswith("\\") and not commands[-1].expected
    return commands


def _matches(expected: list[str], output: str, *, whole: bool) -> bool:
    def tidy(lines: list[str]) -> str:
        return "\n".join(line.rstrip() for line in lines).strip()

    pattern = re.escape(tidy(expected)).replace(re.escape("..."), "(?s:.*?)")
    found = re.fullmatch(pattern, tidy(output.splitlines())) if whole else re.search(pattern, tidy(output.splitlines()))
    return found is not None


class Tutorial:
    """Runs the commands one after the other, with the test's ports and directories."""

    def __init__(self, cluster: KafkaCluster, started: Processes, directory: Path) -> None:
        self._port = free_port()
        self._broker = cluster.address
        self._started = started
        self._background: dict[str, Process] = {}
        commands = directory / "bin"
        commands.mkdir()
        script = commands / "gokamsg"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gokamsg "$@"\n')
        script.chmod(0o755)
        settings = {
            "GOKAMSG_BROKERS": cluster.address,
            "GOKAMSG_PORT": str(self._port),
            "GOKAMSG_URL": f"http://127.0.0.1:{self._port}",
            "GOKAMSG_STATE_DIR": str(directory / "state"),
        }
        self._directory = directory
        self._env = gokamsg_env(settings) | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}

    def _here(self, text: str) -> str:
        text = re.sub(r"\b(localhost|127\.0\.0\.1):8080\b", rf"\1:{self._port}", text)
        return re.sub(r"\b(localhost|127\.0\.0\.1):9092\b", self._broker, text)

    def run(self, command: Command) -> None:
        expected = [self._here(line) for line in command.expected]
        text = self._here(command.text)
        where = f"README.md:{command.line}: {command.text}"
        if command.background:
            self._start(text.removesuffix(" &").strip(), expected, where)
        elif READS.match(text):
            self._read(text, expected, where)
        else:
            code, output = self._once(text)
            assert code == 0, f"{where}: exit code {code}\n{output}"
            assert _matches(expected, output, whole=True), f"{where}: printed\n{output}"

    def _start(self, text: str, expected: list[str], where: str) -> None:
        key = "gokamsg serve" if text.startswith("gokamsg serve") else text
        if key in self._background:
            self._background[key].terminate()
        name = f"{len(self._background)}-{'-'.join(re.findall(r'[a-z]+', text))[:40]}"
        argv = ["bash", "-c", f"exec {text}"]
        process = self._started.add(Process(argv, self._started.log_dir, name=name, env=self._env, cwd=self._directory))
        self._background[key] = process

        def as_shown() -> bool:
            """Each line is there; of two roles that start together either may be the first."""
            ended = not process.running
            output = process.stdout() + process.stderr()
            return all(_matches([line], output, whole=False) for line in expected) or ended

        try:
            eventually(where, as_shown, timeout_s=60, interval_s=0.1)
            assert process.running, f"{where}: ended"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{process.tail()}") from None

    def _read(self, text: str, expected: list[str], where: str) -> None:
        seen = ""

        def as_shown() -> bool:
            nonlocal seen
            code, seen = self._once(text)
            return code == 0 and _matches(expected, seen, whole=True)

        try:
            eventually(where, as_shown, timeout_s=20, interval_s=0.1)
        except AssertionError:
            raise AssertionError(f"{where}: printed\n{seen}\n\n{self._started.tails()}") from None

    def _once(self, text: str) -> tuple[int, str]:
        silent = text.replace("curl ", "curl -sS ", 1) if text.startswith("curl ") else text
        done = subprocess.run(
            ["bash", "-c", silent],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            cwd=self._directory,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")


def test_every_heading_is_there_once() -> None:
    """A section that was once put in twice looked like a longer page."""
    unfenced = "".join(_text().split("```")[::2])
    headings = re.findall(r"^#+ .*", unfenced, flags=re.MULTILINE)
    names = [heading.lstrip("# ") for heading in headings]
    assert len(names) > 20
    assert sorted({*names}) == sorted(names)


def test_the_tutorial_does_what_it_shows(clean_cluster: KafkaCluster, run: Processes, tmp_path: Path) -> None:
    commands = _commands(*_section("tutorial"))
    assert len(commands) >= 8, "the tutorial has hardly any commands"
    tutorial = Tutorial(clean_cluster, run, tmp_path)
    for command in commands:
        tutorial.run(command)


def test_the_settings_table_is_the_table_of_settings() -> None:
    assert render_settings() in _text()


def test_the_table_of_apis_is_what_the_broker_answers_to() -> None:
    assert render_apis() in _text()


def test_every_named_environment_variable_is_a_setting() -> None:
    assert set(re.findall(r"\bGOKAMSG_[A-Z0-9_]*[A-Z0-9]\b", _text())) - _test_variables() <= {
        row.environment for row in SETTINGS
    }


def _test_variables() -> set[str]:
    return {"GOKAMSG_KAFKA_LIBS"}  # the test suite's own


def _named_commands() -> dict[str, set[str]]:
    """Command -> the options that the README uses with it."""
    help_text = run_gokamsg("--help").stdout
    named: dict[str, set[str]] = {}
    for command in re.findall(r"^\$ (gokamsg .*)$", _text(), flags=re.MULTILINE):
        words = shlex.split(command.removesuffix("&"))[1:]
        if not words or words[0].startswith("-"):
            continue
        assert re.search(rf"\b{re.escape(words[0])}\b", help_text), f"there is no command {words[0]!r}: {command}"
        is_group = len(words) > 1 and words[0] == "topics"
        name = " ".join(words[:2] if is_group else words[:1])
        named.setdefault(name, set()).update(word.split("=")[0] for word in words if re.match(r"--?[a-z]", word))
    return named


def test_every_command_and_option_exists() -> None:
    for name, options in _named_commands().items():
        done = run_gokamsg(*name.split(), "--help")
        assert done.returncode == 0, done
        offered = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))
        assert options <= offered, f"gokamsg {name} does not have {sorted(options - offered)}"


def test_the_version_is_the_packages() -> None:
    named = set(re.findall(r"gokamsg (\d+\.\d+\.\d+)", _text()))
    assert named <= {gokamsg.__version__}


@pytest.mark.parametrize(
    ("expected", "output", "whole", "matches"),
    [
        (["a ... c"], "a b c\n", True, True),
        (["a", "...", "d"], "a\nb\nc\nd", True, True),
        (["a"], "a\nb", True, False),
        (["b"], "a\nb\nc", False, True),
        (["[x] (y)"], "[x] (y)", True, True),
        ([], "", True, True),
        ([], "unexpected", True, False),
    ],
)
def test_expected_output_is_compared_as_described(expected: list[str], output: str, whole: bool, matches: bool) -> None:
    assert _matches(expected, output, whole=whole) is matches
