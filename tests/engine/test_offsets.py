"""Where a worker begins: never guessed when something may be lost or doubled."""

from pathlib import Path

import pytest

from gokamsg.engine.offsets import HandledMarks, starting_position
from gokamsg.engine.options import Start
from gokamsg.errors import OffsetsLostError


def begin(
    committed: int | None, log: tuple[int, int], *, handled_before: bool = False, start: Start | None = None
) -> int:
    return starting_position(
        "sent",
        3,
        group="filter",
        committed=committed,
        log_start=log[0],
        log_end=log[1],
        handled_before=handled_before,
        start=start,
    )


@pytest.mark.parametrize(
    ("committed", "log", "handled_before", "expected"),
    [
        (7, (0, 10), True, 7),
        (10, (0, 10), True, 10),
        (5, (5, 10), True, 5),
        (None, (0, 10), False, 0),  # a new group: nothing sent before the first start is lost
        (None, (4, 10), False, 4),
        (None, (0, 0), True, 0),  # a partition that never had a record
    ],
)
def test_what_the_log_still_has_is_read_on(
    committed: int | None, log: tuple[int, int], handled_before: bool, expected: int
) -> None:
    assert begin(committed, log, handled_before=handled_before) == expected


@pytest.mark.parametrize(
    ("committed", "log", "words"),
    [
        (2, (5, 10), "records 2 to 4 were deleted"),
        (12, (0, 10), "beyond the log's end 10"),
        (None, (3, 10), "committed offset is gone"),
    ],
)
def test_what_is_lost_is_named_and_left_to_a_person(committed: int | None, log: tuple[int, int], words: str) -> None:
    with pytest.raises(OffsetsLostError, match=words) as caught:
        begin(committed, log, handled_before=True)
    assert "sent/3" in str(caught.value)
    assert "--start earliest" in str(caught.value)
    assert begin(committed, log, handled_before=True, start="earliest") == log[0]
    assert begin(committed, log, handled_before=True, start="latest") == log[1]


def test_start_does_not_move_a_group_that_has_lost_nothing() -> None:
    assert begin(7, (0, 10), start="latest") == 7


def test_a_topic_made_anew_was_not_handled_before(tmp_path: Path) -> None:
    marks = HandledMarks(tmp_path / "handled")
    assert not marks.has("sent", "id-1", 3)
    marks.add("sent", "id-1", 3)
    marks.add("sent", "id-1", 3)
    assert marks.has("sent", "id-1", 3)
    assert not marks.has("sent", "id-1", 4)
    assert not marks.has("sent", "id-2", 3)
