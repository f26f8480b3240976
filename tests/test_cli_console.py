"""What is printed: one line for each thing, whatever the text holds; logs without tracebacks; plain tables."""

import logging

import pytest

from gokamsg import console
from gokamsg.commands.feed import news
from gokamsg.commands.process import partitions_text
from gokamsg.commands.topics import TopicRow, kept_text, show, sizes_of
from gokamsg.commands.up import hints
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError, StateError, UsageError
from gokamsg.messaging.messages import Message


def test_control_characters_are_made_visible() -> None:
    assert console.visible("a\nb\tc\x1b[2J\x7f\x9b") == "a\\nb\\tc\\x1b[2J\\x7f\\x9b"
    assert console.visible("\u202eabc\u2028") == "\\u202eabc\\u2028"
    assert console.visible("Zoë 名前 🐟") == "Zoë 名前 🐟"


def test_tables_are_aligned_and_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("group", "lag"), [("collector", "7"), ("名前", "1,204")], right=("lag",))
    assert capsys.readouterr().out == "group        lag\ncollector      7\n名前       1,204\n"


def test_a_row_is_cut_where_the_terminal_ends() -> None:
    assert console.fitted("collector  名前", 15) == "collector  名前"
    assert console.fitted("collector  名前", 14) == "collector  名…"
    assert console.fitted("collector  名前", 5) == "coll…"


def test_an_error_is_one_line_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.report(UsageError("no such thing.\nUse another."), debug=False) == 2
    assert console.report(StateError("disk full"), debug=False) == 1
    assert capsys.readouterr().err == "Error: no such thing.\nUse another.\nError: disk full.\n"


def test_what_is_hidden_never_reaches_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_hidden", [])
    console.hide(["pass\nwörd", "pass"])
    console.note("a pass\nwörd")
    console.error("b pass\nwörd")
    secret = "pass\nwörd"
    console.note(f"c {secret.encode()!r} {secret!r}")
    console.report(UsageError("d pass"), debug=True)
    console.out("data: pass")
    printed = capsys.readouterr()
    assert "pass" not in printed.err
    assert printed.err.splitlines()[:3] == ["a ***", "Error: b ***.", "c b'***' '***'"]
    assert printed.out == "data: pass\n"


def test_a_bug_is_named_and_traced_only_for_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyError("x\ny")

    for debug in (False, True):
        with pytest.raises(KeyError) as failed:
            fail()
        assert console.report(failed.value, debug=debug) == 1
        printed = capsys.readouterr().err
        assert "Error: unexpected KeyError: 'x\\ny'." in printed
        assert ("Traceback" in printed) == debug


def test_logs_are_lines_without_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        console.set_up_logging(debug=False)
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("gokamsg.x").exception("it\nfailed")
        logging.getLogger("gokamsg.x").info("not shown")
        logging.getLogger("kafka.x").error("not shown")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("kafka").setLevel(logging.NOTSET)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" error: it\\nfailed (ValueError: why)")


def test_progress_in_a_pipe_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    bars = console.Bars(interval_s=0)
    bars.update("restoring", 412_000, 500_000, "265,000/s")
    bars.remove("restoring")
    quiet = console.Bars(interval_s=60)
    quiet.update("restoring", 1, 2, "")
    assert capsys.readouterr().err == "restoring: 412,000 of 500,000  265,000/s\n"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (console.size_text(999), "999 B"),
        (console.size_text(1400), "1.4 kB"),
        (console.size_text(320_000), "320 kB"),
        (console.size_text(1.4e15), "1,400.0 TB"),
        (console.duration_text(1), "0:00:01"),
        (console.duration_text(8043.4), "2:14:03"),
        (kept_text(604_800_000), "7 d"),
        (kept_text(3_600_000), "1 h"),
        (kept_text(1_234), "1,234 ms"),
        (kept_text(-1), "for ever"),
        (partitions_text([]), "no partitions"),
        (partitions_text([4]), "1 partition (4)"),
        (partitions_text([5, 0, 1]), "3 partitions (0-1, 5)"),
    ],
)
def test_quantities_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def feed_of(text: str) -> list[Message]:
    return [Message("Bob", "Alice", content) for content in text]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "a", "a"),
        ("ab", "abc", "c"),
        ("abcde", "bcdef", "f"),
        ("abcde", "defgh", "fgh"),
        ("abcde", "vwxyz", "vwxyz"),
        ("aaaaa", "aaaaa", "a"),
    ],
)
def test_what_is_new_in_a_feed_is_found(before: str, after: str, expected: str) -> None:
    assert news(feed_of(before), feed_of(after)) == feed_of(expected)


class _Reticent:
    def topic_sizes(self, names: list[str]) -> dict[str, int]:
        raise BrokerUnavailableError("a broker does not tell the sizes of its logs: ClusterAuthorizationFailedError")


def test_bytes_are_left_out_with_the_reason_where_a_broker_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = sizes_of(_Reticent(), ["t"])  # type: ignore[arg-type]
    show([TopicRow("t", 8, 3, "delete", 86_400_000, 12, sizes.get("t"))])
    printed = capsys.readouterr()
    assert (
        printed.out
        == "topic  partitions  replicas  policy  kept  offsets\nt               8         3  delete   1 d       12\n"
    )
    assert printed.err.startswith("bytes are left out: a broker does not tell the sizes of its logs")


def test_what_to_try_names_the_brokers_and_how_to_reach_them() -> None:
    url = "http://127.0.0.1:8080"
    lines = hints(url, Settings(brokers="127.0.0.1:9092"))
    assert lines[3] == "  gokamsg feed Alice --follow"
    assert max(map(len, lines)) <= 80  # so that they can be copied from any terminal
    secure = Settings(brokers="kafka-1:9093", kafka_config="my client.properties")
    options = "--brokers kafka-1:9093 --kafka-config 'my client.properties'"
    assert hints(url, secure)[3] == f"  gokamsg feed Alice --follow {options}"
