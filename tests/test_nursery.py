"""Children that are ready before they are needed: they behave like any other child process.

Each test runs in a process of its own: blanks are forked only while a process has a single thread.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gokamsg

MODULE = """
import json, os, signal, sys, time

def main():
    line = sys.stdin.readline()
    print(json.dumps({"arguments": sys.argv[1:], "input": line.strip(), "loaded": "imported_before" in sys.modules}))
    sys.stdout.flush()
    print("to standard error", file=sys.stderr)
    if "wait" in sys.argv:
        sys.stdin.read()
    if "fail" in sys.argv:
        sys.exit(7)
    if "interrupted" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    if "raise" in sys.argv:
        raise ValueError("broken")

if __name__ == "__main__":
    main()
"""

SCRIPT = """
import importlib, json, os, sys, threading
from gokamsg.nursery import Nursery

nursery = Nursery()
nursery.prepare(lambda: importlib.import_module("imported_before"), blanks=2)
blanks = {blank.pid for blank in nursery._blanks}
seen = []
for argument in sys.argv[1:]:
    if argument == "threaded":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    child = nursery.spawn([sys.executable, "-m", "part_of_it", argument])
    child.stdin.write(b"greeting\\n")
    child.stdin.flush()
    first = child.stdout.readline()
    if argument == "terminate":
        child.terminate()
    elif argument == "kill":
        child.kill()
    child.stdin.close()
    code = child.wait()
    error = child.stderr.read().decode()
    seen.append({**json.loads(first), "code": code, "error": error, "blank": child.pid in blanks})
nursery.close()
left = []
for pid in blanks:
    try:
        os.kill(pid, 0)
        left.append(pid)
    except ProcessLookupError:
        pass
print(json.dumps({"seen": seen, "left": left}))
"""


def raised(tmp_path: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    (tmp_path / "part_of_it.py").write_text(MODULE)
    (tmp_path / "imported_before.py").write_text("")
    path = f"{tmp_path}:{Path(gokamsg.__file__).parent.parent}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return found


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="blanks are forked on Linux only")


def test_a_blank_becomes_the_child_that_is_asked_for(tmp_path: Path) -> None:
    found = raised(tmp_path, "one")
    assert found["seen"] == [
        {
            "arguments": ["one"],
            "input": "greeting",
            "loaded": True,
            "code": 0,
            "error": "to standard error\n",
            "blank": True,
        }
    ]
    assert found["left"] == []


def test_when_no_blank_is_left_another_is_forked(tmp_path: Path) -> None:
    seen = raised(tmp_path, "one", "two", "three")["seen"]
    assert [child["blank"] for child in seen] == [True, True, False]
    assert [child["loaded"] for child in seen] == [True, True, True]
    assert [child["input"] for child in seen] == ["greeting"] * 3


def test_with_a_second_thread_an_ordinary_process_is_started(tmp_path: Path) -> None:
    seen = raised(tmp_path, "one", "two", "threaded")["seen"]
    assert [child["loaded"] for child in seen] == [True, True, False]
    assert seen[2]["input"] == "greeting"


def test_the_interrupt_of_the_terminal_is_left_to_the_parent(tmp_path: Path) -> None:
    (child,) = raised(tmp_path, "interrupted")["seen"]
    assert (child["code"], child["error"]) == (0, "to standard error\n")


def test_exit_codes_and_errors_come_through(tmp_path: Path) -> None:
    fail, broken = raised(tmp_path, "fail", "raise")["seen"]
    assert fail["code"] == 7
    assert broken["code"] == 1
    assert "ValueError: broken" in str(broken["error"])


def test_signals_reach_a_child_that_was_a_blank(tmp_path: Path) -> None:
    terminated, killed = raised(tmp_path, "terminate", "kill")["seen"]
    assert terminated["code"] in (0, -15)  # it may have ended by itself before the signal came
    assert killed["code"] in (0, -9)


def test_a_process_with_threads_raises_no_blanks(tmp_path: Path) -> None:
    code = (
        "import threading; from gokamsg.nursery import Nursery\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "nursery = Nursery(); nursery.prepare(lambda: None, blanks=2); print(len(nursery._blanks))"
    )
    root = str(Path(gokamsg.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0"
