"""The transaction coordinator with real logs, offsets and store, on a clock that the test moves."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from gokamsg.broker.codes import Code
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.transaction import LAST_EPOCH, SPACE, Transaction, TransactionState
from gokamsg.broker.transactions import BLOCK, TransactionCoordinator
from tests.broker.fake_clock import on_loop
from tests.broker.scene import PARTITIONS, TOPIC, Scene, at, scene

TIMEOUT_MS = 60_000
ID = "x"
DAY_S = 24 * 3600.0


async def begin(it: Scene, *partitions: int, expected: tuple[int, int] | None = None) -> tuple[int, int]:
    """A producer with an open transaction and one record in each of the partitions."""
    code, producer_id, epoch = await it.broker.transactions.init_producer(ID, TIMEOUT_MS, expected)
    assert code is Code.NONE
    await go_on(it, (producer_id, epoch), *partitions)
    return producer_id, epoch


async def go_on(it: Scene, producer: tuple[int, int], *partitions: int) -> None:
    added = [(TOPIC, partition) for partition in partitions]
    assert await it.broker.transactions.add_partitions(ID, *producer, added) is Code.NONE
    for partition in partitions:
        assert await it.append(producer, partition) == 0


def state(it: Scene) -> TransactionState:
    transaction = it.broker.transactions.get(ID)
    assert transaction is not None
    return transaction.state


def ends(log: PartitionLog) -> tuple[int, int, int]:
    return log.last_stable_offset, log.high_watermark, len(log.aborted)


async def end(it: Scene, producer: tuple[int, int], *, commit: bool = True) -> Code:
    return await it.broker.transactions.end(ID, *producer, commit=commit)


async def set_epoch(it: Scene, epoch: int) -> None:
    """As after so many InitProducerIds."""
    transaction = it.broker.transactions.get(ID)
    assert transaction is not None
    unit = it.broker.store.unit()
    unit.put(SPACE, ID, msgspec.msgpack.encode(msgspec.structs.replace(transaction, epoch=epoch)))
    await it.broker.store.commit(unit)
    await it.restart()


# ---- producer ids and epochs


@on_loop
async def test_idempotent_producers_get_ids_of_their_own_also_after_restarts(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        seen = set()
        for _ in range(3):
            for _ in range(BLOCK // 2 + 1):
                code, producer_id, epoch = await it.broker.transactions.init_producer(None, 1)
                assert (code, epoch) == (Code.NONE, 0)
                assert producer_id not in seen
                seen.add(producer_id)
            await it.restart()


@on_loop
async def test_a_second_producer_of_the_id_fences_the_first(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        coordinator = it.broker.transactions
        first = await begin(it, 0)
        assert await end(it, first) is Code.NONE
        code, producer_id, epoch = await coordinator.init_producer(ID, TIMEOUT_MS)
        assert (code, producer_id, epoch) == (Code.NONE, first[0], first[1] + 1)
        assert await coordinator.add_partitions(ID, *first, [(TOPIC, 0)]) is Code.PRODUCER_FENCED
        assert await coordinator.add_group(ID, *first, "g") is Code.PRODUCER_FENCED
        assert await end(it, first) is Code.PRODUCER_FENCED
        assert coordinator.check_append(*first, TOPIC, 0) is Code.INVALID_PRODUCER_EPOCH


@on_loop
async def test_the_owner_of_an_open_transaction_is_fenced_while_it_is_taken_over(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        coordinator = it.broker.transactions
        first = await begin(it, 0)
        taking_over = asyncio.create_task(coordinator.init_producer(ID, TIMEOUT_MS))
        taken = coordinator.get(ID)
        assert taken is not None
        while taken.open:
            await asyncio.sleep(0)
        assert not taking_over.done()
        assert coordinator.check_append(*first, TOPIC, 0) is Code.INVALID_PRODUCER_EPOCH
        assert await end(it, first) is Code.PRODUCER_FENCED
        assert await taking_over == (Code.NONE, first[0], first[1] + 2)


@on_loop
async def test_taking_over_an_open_transaction_aborts_it_with_an_epoch_between(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer_id, epoch = await begin(it, 0, 1)
        assert ends(it.log(0)) == (0, 1, 0)
        code, same_id, new_epoch = await it.broker.transactions.init_producer(ID, TIMEOUT_MS)
        assert (code, same_id, new_epoch) == (Code.NONE, producer_id, epoch + 2)
        assert [ends(it.log(partition)) for partition in (0, 1)] == [(2, 2, 1), (2, 2, 1)]
        assert state(it) is TransactionState.EMPTY
        await go_on(it, (producer_id, new_epoch), 0)
        assert await end(it, (producer_id, new_epoch)) is Code.NONE
        assert ends(it.log(0)) == (4, 4, 1)


@on_loop
async def test_a_producer_bumps_its_own_epoch_and_may_repeat_that(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        init = it.broker.transactions.init_producer
        _, producer_id, epoch = await init(ID, TIMEOUT_MS)
        bumped = (Code.NONE, producer_id, epoch + 1)
        assert await init(ID, TIMEOUT_MS, (producer_id, epoch)) == bumped
        assert await init(ID, TIMEOUT_MS, (producer_id, epoch)) == bumped  # its answer was lost
        await it.restart()
        assert await it.broker.transactions.init_producer(ID, TIMEOUT_MS, (producer_id, epoch)) == bumped


@on_loop
async def test_a_producer_that_lost_its_id_to_another_cannot_bump(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        init = it.broker.transactions.init_producer
        _, producer_id, epoch = await init(ID, TIMEOUT_MS)
        await init(ID, TIMEOUT_MS)
        assert (await init(ID, TIMEOUT_MS, (producer_id, epoch)))[0] is Code.PRODUCER_FENCED
        assert (await init(ID, TIMEOUT_MS, (producer_id + 1, epoch)))[0] is Code.PRODUCER_FENCED


@on_loop
async def test_a_zombie_cannot_abort_the_transaction_of_its_successor(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        first = await begin(it)
        second = await begin(it, 0, expected=first)
        assert (await it.broker.transactions.init_producer(ID, TIMEOUT_MS, first))[0] is Code.PRODUCER_FENCED
        assert await end(it, second) is Code.NONE


@on_loop
async def test_after_the_last_epoch_comes_a_new_producer_id(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        old_id, _ = await begin(it)
        await end(it, (old_id, 0))
        await set_epoch(it, LAST_EPOCH)
        init = it.broker.transactions.init_producer
        code, producer_id, epoch = await init(ID, TIMEOUT_MS, (old_id, LAST_EPOCH))
        assert (code, epoch) == (Code.NONE, 0)
        assert producer_id != old_id
        assert await init(ID, TIMEOUT_MS, (old_id, LAST_EPOCH)) == (Code.NONE, producer_id, 0)
        assert await end(it, (old_id, LAST_EPOCH)) is Code.INVALID_PRODUCER_ID_MAPPING
        assert it.broker.transactions.check_append(old_id, LAST_EPOCH, TOPIC, 0) is Code.INVALID_PRODUCER_ID_MAPPING


@on_loop
async def test_an_open_transaction_at_the_last_epoch_is_aborted_and_followed_by_a_new_id(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        old_id, _ = await begin(it)
        await set_epoch(it, LAST_EPOCH)
        await go_on(it, (old_id, LAST_EPOCH), 0)
        code, producer_id, epoch = await it.broker.transactions.init_producer(ID, TIMEOUT_MS)
        assert (code, epoch) == (Code.NONE, 0)
        assert producer_id != old_id
        assert ends(it.log(0)) == (2, 2, 1)


@pytest.mark.parametrize("timeout_ms", [0, -1, 900_001])
@on_loop
async def test_timeouts_that_are_no_timeouts_or_too_long_are_refused(tmp_path: Path, timeout_ms: int) -> None:
    async with scene(tmp_path) as it:
        code, _, _ = await it.broker.transactions.init_producer(ID, timeout_ms)
        assert code is Code.INVALID_TRANSACTION_TIMEOUT
        assert (await it.broker.transactions.init_producer("", TIMEOUT_MS))[0] is Code.INVALID_REQUEST


# ---- a transaction


@pytest.mark.parametrize("commit", [True, False])
@on_loop
async def test_the_end_moves_the_last_stable_offset_and_may_be_repeated(tmp_path: Path, commit: bool) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0, 2)
        assert ends(it.log(0)) == (0, 1, 0)
        assert await end(it, producer, commit=commit) is Code.NONE
        aborted = 0 if commit else 1
        assert [ends(it.log(partition)) for partition in (0, 1, 2)] == [(2, 2, aborted), (0, 0, 0), (2, 2, aborted)]
        assert await end(it, producer, commit=commit) is Code.NONE
        assert await end(it, producer, commit=not commit) is Code.INVALID_TXN_STATE
        assert it.log(0).high_watermark == 2


@on_loop
async def test_a_second_request_during_the_end_is_told_to_wait(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        coordinator = it.broker.transactions
        ending = coordinator.end(ID, *producer, commit=True)
        ending.send(None)  # as far as the disk
        assert state(it) is TransactionState.PREPARE_COMMIT
        assert ends(it.log(0)) == (0, 1, 0)
        assert await end(it, producer) is Code.CONCURRENT_TRANSACTIONS
        assert await coordinator.add_partitions(ID, *producer, [(TOPIC, 1)]) is Code.CONCURRENT_TRANSACTIONS
        assert (await coordinator.init_producer(ID, TIMEOUT_MS))[0] is Code.CONCURRENT_TRANSACTIONS
        assert coordinator.check_append(*producer, TOPIC, 0) is Code.INVALID_TXN_STATE
        ending.close()  # the client is gone; the transaction ends all the same
        await it.settled()
        assert ends(it.log(0)) == (2, 2, 0)
        assert await end(it, producer) is Code.NONE


@on_loop
async def test_markers_offsets_and_state_end_in_one_write_unit(tmp_path: Path) -> None:
    """In two, a kill between them would split the transaction: offsets without records, or an end that never comes."""
    async with scene(tmp_path) as it:
        producer = await begin(it, 0, 1)
        await it.broker.transactions.add_group(ID, *producer, "g")
        await send_offsets(it.broker.transactions, producer, 7)
        store, units = it.broker.store, []
        commit = store.commit
        store.commit = lambda unit: units.append(unit) or commit(unit)  # type: ignore[method-assign]
        assert await end(it, producer) is Code.NONE
        await it.settled()
        (unit,) = [unit for unit in units if not unit.empty]
        assert len(unit.rows) == 2
        assert it.broker.offsets.fetch("g", (TOPIC, 0)) == at(7)


@on_loop
async def test_what_never_began_cannot_end_and_strangers_have_no_transaction(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        coordinator = it.broker.transactions
        _, producer_id, epoch = await coordinator.init_producer(ID, TIMEOUT_MS)
        assert await end(it, (producer_id, epoch)) is Code.INVALID_TXN_STATE
        assert await end(it, (producer_id + 1, epoch)) is Code.INVALID_PRODUCER_ID_MAPPING
        assert await coordinator.add_partitions("y", producer_id, epoch, []) is Code.INVALID_PRODUCER_ID_MAPPING


@on_loop
async def test_produce_is_refused_for_partitions_outside_the_transaction(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        check = it.broker.transactions.check_append
        assert check(*producer, TOPIC, 0) is Code.NONE
        assert check(*producer, TOPIC, 1) is Code.INVALID_TXN_STATE
        await end(it, producer)
        assert check(*producer, TOPIC, 0) is Code.INVALID_TXN_STATE
        assert check(producer[0] + 1, 0, TOPIC, 0) is Code.INVALID_PRODUCER_ID_MAPPING


# ---- offsets of a transaction


async def send_offsets(coordinator: TransactionCoordinator, producer: tuple[int, int], offset: int) -> Code:
    return await coordinator.commit_offsets(ID, producer, "g", {(TOPIC, 0): at(offset)})


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("commit", [True, False])
@on_loop
async def test_offsets_become_the_groups_with_the_end(tmp_path: Path, commit: bool, restart: bool) -> None:
    async with scene(tmp_path) as it:
        await it.broker.offsets.commit("g", {(TOPIC, 0): at(3), (TOPIC, 1): at(4)})
        producer = await begin(it, 0)
        assert await it.broker.transactions.add_group(ID, *producer, "g") is Code.NONE
        assert await send_offsets(it.broker.transactions, producer, 7) is Code.NONE
        if restart:
            await it.restart()
        offsets = it.broker.offsets
        assert offsets.fetch("g", (TOPIC, 0)) == at(3)
        assert [offsets.is_unstable("g", (TOPIC, partition)) for partition in (0, 1)] == [True, False]
        assert await end(it, producer, commit=commit) is Code.NONE
        for _ in range(2):
            assert it.broker.offsets.fetch("g", (TOPIC, 0)) == at(7 if commit else 3)
            assert it.broker.offsets.fetch("g", (TOPIC, 1)) == at(4)
            assert not it.broker.offsets.is_unstable("g", (TOPIC, 0))
            await it.restart()


@on_loop
async def test_offsets_need_the_group_in_the_transaction_and_the_current_epoch(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        coordinator = it.broker.transactions
        assert await send_offsets(coordinator, producer, 7) is Code.INVALID_TXN_STATE
        await coordinator.add_group(ID, *producer, "g")
        assert await send_offsets(coordinator, (producer[0], producer[1] + 1), 7) is Code.PRODUCER_FENCED
        wrong = await coordinator.commit_offsets(ID, producer, "g", {(TOPIC, 0): at(7)}, member=(1, "m", None))
        assert wrong is Code.ILLEGAL_GENERATION  # there is no such group, so no such generation


# ---- time and crashes


@on_loop
async def test_a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        await it.broker.transactions.add_group(ID, *producer, "g")
        await send_offsets(it.broker.transactions, producer, 7)
        it.clock.advance(TIMEOUT_MS / 1000 - 1)
        await it.settled()
        assert state(it) is TransactionState.ONGOING
        it.clock.advance(1)
        await it.settled()
        assert state(it) is TransactionState.COMPLETE_ABORT
        assert ends(it.log(0)) == (2, 2, 1)
        assert it.broker.offsets.fetch("g", (TOPIC, 0)) is None
        assert await end(it, producer) is Code.PRODUCER_FENCED
        assert await it.append(producer) == Code.INVALID_PRODUCER_EPOCH
        assert await begin(it, 0) == (producer[0], producer[1] + 2)


@on_loop
async def test_the_timeout_counts_from_the_first_partition_and_ends_with_the_transaction(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it)
        it.clock.advance(50)
        await end(it, producer)
        await go_on(it, producer, 0)
        it.clock.advance(50)
        await go_on(it, producer, 1)
        assert state(it) is TransactionState.ONGOING
        it.clock.advance(10)
        await it.settled()
        assert state(it) is TransactionState.COMPLETE_ABORT


@on_loop
async def test_after_a_crash_an_open_transaction_goes_on_with_the_rest_of_its_time(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        it.clock.advance(40)
        await it.restart()
        assert ends(it.log(0)) == (0, 1, 0)
        assert it.broker.transactions.check_append(*producer, TOPIC, 0) is Code.NONE
        await go_on(it, producer, 1)
        it.clock.advance(20)
        await it.settled()
        assert [ends(it.log(partition)) for partition in (0, 1)] == [(2, 2, 1), (2, 2, 1)]
        await it.restart()
        assert state(it) is TransactionState.COMPLETE_ABORT
        assert ends(it.log(0)) == (2, 2, 1)


@on_loop
async def test_the_end_survives_a_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        await end(it, producer)
        await it.restart()
        assert ends(it.log(0)) == (2, 2, 0)
        assert await end(it, producer) is Code.NONE
        assert await end(it, producer, commit=False) is Code.INVALID_TXN_STATE


@on_loop
async def test_a_transaction_over_a_deleted_topic_still_ends(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        producer = await begin(it, 0)
        topic = it.broker.topics.get(TOPIC)
        assert topic is not None
        await it.broker.topics.delete(topic)
        assert await end(it, producer) is Code.NONE


@on_loop
async def test_a_transaction_over_a_deleted_topic_leaves_no_mark_in_its_successor(tmp_path: Path) -> None:
    """A worker that is killed with its transaction open, its topics made anew, its state gone: a first start."""
    async with scene(tmp_path) as it:
        await begin(it, 0)
        topic = it.broker.topics.get(TOPIC)
        assert topic is not None
        await it.broker.topics.delete(topic)
        await it.broker.topics.create(TOPIC, PARTITIONS, {})
        it.clock.advance(TIMEOUT_MS / 1000 + 1)
        await it.settled()
        assert state(it) is TransactionState.COMPLETE_ABORT
        assert ends(it.log(0)) == (0, 0, 0)


@on_loop
async def test_ids_that_nobody_uses_are_forgotten_but_not_open_transactions(tmp_path: Path) -> None:
    async with scene(tmp_path, transaction_max_timeout_ms=1 << 50) as it:
        coordinator = it.broker.transactions
        await coordinator.init_producer("idle", TIMEOUT_MS)
        _, producer_id, epoch = await coordinator.init_producer("busy", 1 << 49)
        await coordinator.add_partitions("busy", producer_id, epoch, [(TOPIC, 0)])
        it.clock.advance(6.9 * DAY_S)
        assert coordinator.get("idle") is not None
        it.clock.advance(0.2 * DAY_S)
        assert {transaction.id for transaction in coordinator.all()} == {"busy"}
        await it.settled()
        await it.restart()
        assert {transaction.id for transaction in it.broker.transactions.all()} == {"busy"}


def test_the_stored_form_round_trips() -> None:
    transaction = Transaction(
        id=ID, producer_id=7, epoch=3, timeout_ms=1, state=TransactionState.ONGOING, partitions={("t", 1)}, groups={"g"}
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(transaction), type=Transaction) == transaction
