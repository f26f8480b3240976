"""Sequence windows of idempotent producers."""

import pytest

from gokamsg.broker.batch import BatchError
from gokamsg.broker.codes import Code
from gokamsg.broker.producers import MAX_PRODUCERS, Producers, Written

PID = 9


def send(
    producers: Producers, sequence: int, count: int, offset: int, *, epoch: int = 0, transactional: bool = False
) -> Written | None:
    """Check a batch and, when it is new, append it."""
    written = producers.check(PID, epoch, sequence, count, transactional=transactional)
    if written is None:
        producers.appended(
            PID,
            epoch,
            base_sequence=sequence,
            count=count,
            base_offset=offset,
            timestamp=1000,
            transactional=transactional,
        )
    return written


def refused(producers: Producers, sequence: int, count: int, *, epoch: int = 0, transactional: bool = False) -> Code:
    with pytest.raises(BatchError) as caught:
        producers.check(PID, epoch, sequence, count, transactional=transactional)
    return caught.value.code


def test_unknown_producer_may_start_anywhere() -> None:
    """Retention may have deleted its history."""
    producers = Producers()
    assert send(producers, 41, 2, 0) is None
    assert send(producers, 43, 1, 2) is None


def test_duplicates_of_the_last_five_are_answered_with_the_first_offset() -> None:
    producers = Producers()
    for index in range(6):
        assert send(producers, index * 2, 2, 100 + index * 2) is None
    for index in range(1, 6):
        written = send(producers, index * 2, 2, 999)
        assert written is not None
        assert written.base_offset == 100 + index * 2
    assert refused(producers, 0, 2) == Code.OUT_OF_ORDER_SEQUENCE_NUMBER  # older than the window


def test_gap_is_refused() -> None:
    producers = Producers()
    send(producers, 0, 2, 0)
    assert refused(producers, 3, 1) == Code.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert refused(producers, 1, 1) == Code.OUT_OF_ORDER_SEQUENCE_NUMBER  # inside an earlier batch


def test_older_epoch_is_refused_and_a_new_one_starts_at_0() -> None:
    producers = Producers()
    send(producers, 0, 2, 0, epoch=3)
    assert refused(producers, 2, 1, epoch=2) == Code.INVALID_PRODUCER_EPOCH
    assert refused(producers, 2, 1, epoch=4) == Code.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert send(producers, 0, 1, 2, epoch=4) is None
    assert refused(producers, 2, 1, epoch=3) == Code.INVALID_PRODUCER_EPOCH


def test_sequences_wrap_to_0() -> None:
    producers = Producers()
    last = 2**31 - 1
    assert send(producers, last - 1, 3, 0) is None  # 2^31 - 2, 2^31 - 1, 0
    assert send(producers, 1, 1, 3) is None
    written = send(producers, last - 1, 3, 99)
    assert written is not None
    assert written.base_offset == 0


def test_transaction_stays_open_until_its_marker() -> None:
    producers = Producers()
    send(producers, 0, 1, 10, transactional=True)
    send(producers, 1, 1, 11, transactional=True)
    assert producers.by_id[PID].transaction_start == 10
    assert refused(producers, 2, 1) == Code.INVALID_TXN_STATE
    assert producers.ended(PID, 0, timestamp=5, coordinator_epoch=1) == 10
    assert producers.ended(PID, 0, timestamp=5, coordinator_epoch=1) == -1
    assert send(producers, 2, 1, 12) is None  # sequences go on in the same epoch


def test_marker_of_a_bumped_epoch_ends_the_transaction_and_fences() -> None:
    producers = Producers()
    send(producers, 0, 3, 10, transactional=True)
    assert producers.ended(PID, 1, timestamp=5, coordinator_epoch=0) == 10
    assert refused(producers, 3, 1, transactional=True) == Code.INVALID_PRODUCER_EPOCH
    assert send(producers, 0, 1, 13, epoch=1, transactional=True) is None


def test_snapshot_brings_everything_back() -> None:
    producers = Producers()
    for index in range(7):
        send(producers, index, 1, index, transactional=True)
    restored = Producers()
    restored.restore(producers.snapshot())
    assert restored.snapshot() == producers.snapshot()
    assert send(restored, 6, 1, 99, transactional=True) == Written(6, 6, 6)
    assert send(restored, 7, 1, 7, transactional=True) is None


def test_idle_producers_are_forgotten_but_not_those_in_a_transaction() -> None:
    producers = Producers()
    send(producers, 0, 1, 0, transactional=True)
    assert producers.expire(10_000) == 0
    producers.ended(PID, 0, timestamp=1000, coordinator_epoch=0)
    assert producers.expire(1000) == 0
    assert producers.expire(1001) == 1
    assert not producers.by_id


def test_made_up_producer_ids_do_not_fill_the_memory() -> None:
    producers = Producers()
    send(producers, 0, 1, 0, transactional=True)  # in a transaction: never forgotten
    for producer_id in range(100, 100 + MAX_PRODUCERS + 50):
        producers.appended(producer_id, 0, base_sequence=0, count=1, base_offset=1, timestamp=1000, transactional=False)
    assert len(producers.by_id) == MAX_PRODUCERS
    assert PID in producers.by_id
    assert 100 not in producers.by_id
    assert 100 + MAX_PRODUCERS + 49 in producers.by_id
