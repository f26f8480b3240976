"""The tables of one worker together: what is in memory of them does not grow with the number of partitions."""

from pathlib import Path

from gokamsg.engine.tables import ALL_DIRTY_BYTES, Tables, sqlite_builder

ROW_BYTES = 300  # of 100 bytes, in memory: two objects and their place in a dictionary


def test_rows_not_yet_stored_are_bounded_for_all_partitions_together(tmp_path: Path) -> None:
    shares, opened, at_once = 64, 3, 500
    tables = Tables(sqlite_builder(tmp_path), cache_bytes=1 << 20, shares=shares)
    for partition in range(opened):
        table = tables.open("t-table", partition, "id")
        for number in range(0, 8_000, at_once):
            table.apply({b"%d" % (number + n): b"x" * 100 for n in range(at_once)}, number + at_once)
    waiting = sum(table.dirty_rows for table in tables)
    assert waiting * ROW_BYTES < ALL_DIRTY_BYTES * opened / shares + opened * at_once * ROW_BYTES
    assert sum(len(table) for table in tables) == opened * 8_000
    tables.close_all()
