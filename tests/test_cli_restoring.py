"""What workers note of their restore is what status finds, until they are done or gone."""

import os
import time
from pathlib import Path

from gokamsg.commands.restoring import STALE_S, Note, Restoring, read_notes


def test_notes_are_found_by_group_and_removed_when_done(tmp_path: Path) -> None:
    note = Note(tmp_path, "my.group")
    assert read_notes(tmp_path) == {}
    note.update(Restoring(10, 100))
    note.update(Restoring(20, 100))
    assert read_notes(tmp_path) == {"my.group": Restoring(20, 100)}
    note.update(None)
    assert read_notes(tmp_path) == {}
    assert list((tmp_path / "restoring").iterdir()) == []


def test_workers_of_a_group_are_added_up(tmp_path: Path) -> None:
    Note(tmp_path, "g").update(Restoring(20, 100))
    (tmp_path / "restoring" / "g.1.json").write_text('{"rows_done": 1, "rows": 2}')
    (tmp_path / "restoring" / "g.2.json").write_text("{half")
    assert read_notes(tmp_path) == {"g": Restoring(21, 102)}


def test_notes_of_workers_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    Note(tmp_path, "g").update(Restoring(20, 100))
    assert read_notes(tmp_path, now_s=time.time() + STALE_S + 1) == {}


def test_a_directory_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "restoring").write_text("")
    note = Note(tmp_path, "g")
    note.update(Restoring(20, 100))
    note.update(None)
    assert read_notes(tmp_path) == {}
    assert os.listdir(tmp_path) == ["restoring"]
