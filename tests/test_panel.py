"""The panel of `gokamsg up`: what a person sees of the roles, at any width."""

from gokamsg.panel import cells, fit, panel

RUNNING = {
    "state": "running",
    "partitions": list(range(8)),
    "records_per_s": 1204.4,
    "lag": 37,
    "commit_ms": 4.25,
    "bad_records": 2,
    "parked_records": 3,
    "restoring": None,
    "notice": None,
}


def shown(width: int, **changes: object) -> list[str]:
    statuses = {"filter": {**RUNNING, **changes}, "collector": RUNNING}
    return panel(statuses, ["Bob to Alice: Hey"], width=width, url="http://127.0.0.1:8080", uptime_s=3_725)


def test_a_row_says_state_rate_and_lag_and_a_line_the_rates_of_the_topics() -> None:
    lines = shown(120)
    assert lines[0].split() == ["role", "state", "partitions", "records/s", "lag", "commit", "bad", "parked"]
    assert lines[1].split() == ["filter", "running", "8", "1,204", "37", "4.2", "ms", "2", "3"]
    assert lines[4] == "message_sent 1,204/s  message_received 1,204/s  block_user 0/s  translate-word 0/s"
    assert "  Bob to Alice: Hey" in lines
    assert lines[-1] == "http://127.0.0.1:8080   up 1:02:05   q or Ctrl-C stops"


def test_a_restore_shows_how_far_it_is() -> None:
    restoring = {"rows_done": 412_000, "rows": 500_000, "remaining_s": 1.2}
    assert "restoring 412,000 of 500,000, 0:00:01 left" in shown(120, restoring=restoring)[1]
    assert "left" not in shown(120, restoring={**restoring, "remaining_s": None})[1]


def test_a_role_that_waits_for_the_broker_says_so() -> None:
    assert "waiting for the broker" in shown(120, notice="no broker is connected")[1]


def test_nothing_is_wider_than_the_terminal() -> None:
    for width in (20, 40, 80, 200):
        assert all(cells(line) <= width for line in shown(width))
    assert "parked" not in shown(60)[0]
    assert shown(60)[0].startswith("role")


def test_the_workers_of_a_role_share_its_topic_and_one_that_never_committed_has_no_time_for_it() -> None:
    lines = panel({"filter/1": RUNNING, "filter/2": {**RUNNING, "commit_ms": 0.0}}, [], width=120, url="", uptime_s=0)
    assert "message_sent 2,409/s" in lines[4]
    assert lines[2].split()[5] == "-"


def test_wide_characters_count_as_two_columns_and_combining_ones_as_none() -> None:
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    assert fit("日本語のメッセージ", 7) == "日本語…"
    assert cells(fit("日本語のメッセージ", 8)) <= 8
    assert fit("short", 5) == "short"
