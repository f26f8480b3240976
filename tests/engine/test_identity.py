"""A worker's slot: locked while it lives, the same ids for whoever comes after it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gokamsg.engine.identity import Identity, acquire
from gokamsg.errors import StateError
from tests.helpers import eventually

HOLD = """
import sys
from pathlib import Path
from gokamsg.engine.identity import acquire
identity = acquire(Path(sys.argv[1]), "cluster", "filter")
print(identity.transactional_id, identity.instance_id, flush=True)
sys.stdin.read()
"""


def test_workers_of_one_group_get_slots_of_their_own(tmp_path: Path) -> None:
    first, second = acquire(tmp_path, "c", "filter"), acquire(tmp_path, "c", "filter")
    other = acquire(tmp_path, "c", "collector")
    assert (first.slot, second.slot, other.slot) == (0, 1, 0)
    assert len({first.transactional_id, second.transactional_id, other.transactional_id}) == 3
    assert first.directory != second.directory
    for identity in (first, second, other):
        identity.release()


def test_a_killed_workers_successor_has_its_ids(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ids = process.stdout.readline().split()
        while_alive = acquire(tmp_path, "cluster", "filter")
        process.kill()
    successor = eventually("slot 0 is free again", lambda: _slot_zero(tmp_path))
    assert [successor.transactional_id, successor.instance_id] == ids
    assert while_alive.transactional_id not in ids
    successor.release()
    while_alive.release()


def _slot_zero(state_dir: Path) -> Identity | None:
    identity = acquire(state_dir, "cluster", "filter")
    if identity.slot == 0:
        return identity
    identity.release()
    return None


def test_another_state_directory_is_another_installation(tmp_path: Path) -> None:
    here, there = acquire(tmp_path / "a", "c", "filter"), acquire(tmp_path / "b", "c", "filter")
    assert here.transactional_id != there.transactional_id
    here.release()
    there.release()


def test_an_instance_id_is_legal_for_kafka_whatever_the_group_is_called(tmp_path: Path) -> None:
    identity = acquire(tmp_path, "c", "grüppe.1_x-y")
    assert identity.instance_id.isascii()
    assert all(c.isalnum() or c in "._-" for c in identity.instance_id)
    identity.release()


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("")
    with pytest.raises(StateError, match=r"state'.*--state-dir"):
        acquire(path, "c", "filter")


@pytest.mark.parametrize(
    "text", ["", "a b", "format 1", "format 1\n../../x", "format one\nabc", "\0", "\u00ff\u00ff", "f/x"]
)
def test_a_damaged_installation_id_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "installation").write_text(text)
    with pytest.raises(StateError, match=r"installation' does not hold an installation id; delete the file"):
        acquire(tmp_path, "c", "filter")
    assert (tmp_path / "installation").read_text() == text


def test_an_installation_of_an_older_format_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "installation").write_text("0123456789ab")
    for _ in range(2):
        identity = acquire(tmp_path, "c", "filter")
        assert identity.transactional_id == "filter-0123456789ab-0"
        identity.release()
    assert (tmp_path / "installation").read_text() == "format 1\n0123456789ab\n"


def test_an_installation_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = "format 2\nsomething else\n"
    (tmp_path / "installation").write_text(text)
    with pytest.raises(StateError, match=r"newer gokamsg \(format 2, and this one knows 1\); use that version, or"):
        acquire(tmp_path, "c", "filter")
    assert (tmp_path / "installation").read_text() == text


def test_the_state_of_one_cluster_is_not_that_of_another(tmp_path: Path) -> None:
    one, other = acquire(tmp_path, "one", "filter"), acquire(tmp_path, "other", "filter")
    assert (one.slot, other.slot) == (0, 0)
    assert one.directory != other.directory
    one.release()
    other.release()


def test_what_it_makes_is_its_users_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        acquire(tmp_path / "deep" / "state", "c", "filter").release()
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    directories = ("deep", "deep/state", "deep/state/c", "deep/state/c/filter", "deep/state/c/filter/0")
    assert found == dict.fromkeys(directories, 0o700) | {
        "deep/state/installation": 0o600,
        "deep/state/c/filter/0/lock": 0o600,
    }
