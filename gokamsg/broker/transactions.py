"""The transaction coordinator: producer ids, epochs and transactions.

1. A transaction ends in one write unit: the markers of its partitions, the groups' offsets and its own state become
   durable together. Until then it counts as ending, and its producer is told to wait (51).
2. Only the holder of the current epoch can write, add or end; InitProducerId and a timeout bump the epoch, and abort
   what was open with the bumped one.
3. After a restart open transactions are open with the rest of their time; nothing about them has to be guessed.
4. A producer id is handed out once, ever.

Changes to a transaction are in memory at once and answered when durable: later units cannot overtake earlier ones,
and a failed write ends the broker. What readers of a log or a group see changes with the unit.

Not here: sequence numbers (log), who is in a group (groups). Runs on the broker's loop.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from gokamsg.broker.clock import Clock, Timer
from gokamsg.broker.codes import Code
from gokamsg.broker.groups import GroupCoordinator
from gokamsg.broker.log import PartitionLog
from gokamsg.broker.offsets import Effect, Offsets, OffsetStore, commit_unheard
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.store import Store, WriteUnit
from gokamsg.broker.transaction import LAST_EPOCH, NO_EPOCH, NO_PRODUCER, SPACE, Transaction, TransactionState

COUNTER_SPACE = "producer_id"  # one record: the first producer id that was never reserved
BLOCK = 1000  # producer ids reserved with one write
EXPIRY_CHECK_S = 3600.0


class TransactionCoordinator:
    """Owns every producer id and transaction."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: random_module.Random,
        store: Store,
        offsets: OffsetStore,
        logs: Callable[[str, int], PartitionLog | None],
        groups: GroupCoordinator,
        settings: BrokerSettings,
    ) -> None:
        self._clock = clock
        self._random = random
        self._store = store
        self._offsets = offsets
        self._logs = logs
        self._groups = groups
        self._max_timeout_ms = settings.transaction_max_timeout_ms
        self._expiration_ms = settings.transactional_id_expiration_ms
        self._by_id: dict[str, Transaction] = {}
        self._by_producer: dict[int, Transaction] = {}
        self._timeouts: dict[str, Timer] = {}
        self._expiry: Timer | None = None
        self._next_id = self._reserved = 0

    def recover(self) -> None:
        """Read what is stored; once, after topics, offsets and groups, before the first request."""
        # A new data file starts anywhere: a client that outlived the old one must not share its id with a new client.
        counter = dict(self._store.scan(COUNTER_SPACE)).get("next")
        self._next_id = self._reserved = int(counter) if counter else self._random.getrandbits(31) * BLOCK
        for _, value in self._store.scan(SPACE):
            self._keep(msgspec.msgpack.decode(value, type=Transaction))
        self._expiry = self._clock.call_later(EXPIRY_CHECK_S, self._expire)

    def close(self) -> None:
        """Stop every timer."""
        for timer in [*self._timeouts.values(), self._expiry]:
            if timer is not None:
                timer.cancel()

    # ---- producers

    async def init_producer(
        self, transactional_id: str | None, timeout_ms: int, expected: tuple[int, int] | None = None
    ) -> tuple[Code, int, int]:
        """InitProducerId: (code, producer id, epoch). `expected` is the (id, epoch) that the caller has, if any."""
        unit = self._store.unit()
        if transactional_id is None:
            producer_id = self._allocate(unit)
            await self._store.commit(unit)
            return Code.NONE, producer_id, 0
        code = Code.NONE
        if transactional_id == "":
            code = Code.INVALID_REQUEST
        elif not 0 < timeout_ms <= self._max_timeout_ms:
            code = Code.INVALID_TRANSACTION_TIMEOUT
        transaction = self._by_id.get(transactional_id)
        if code is Code.NONE and transaction is not None:
            code = transaction.check_init(expected)
        if code is not Code.NONE:
            return code, NO_PRODUCER, NO_EPOCH
        if transaction is None:
            transaction = Transaction(id=transactional_id, producer_id=self._allocate(unit), timeout_ms=timeout_ms)
        if not transaction.is_retry(expected):
            transaction = self._take_over(unit, transaction, timeout_ms, keep_last=expected is not None)
        await self._store.commit(unit)
        return Code.NONE, transaction.producer_id, transaction.epoch

    def _take_over(self, unit: WriteUnit, old: Transaction, timeout_ms: int, *, keep_last: bool) -> Transaction:
        """The id with its next epoch, Empty; an open transaction is aborted on the way, with an epoch of its own."""
        new = msgspec.structs.replace(
            old,
            epoch=old.epoch + (2 if old.open else 1),
            last_producer_id=NO_PRODUCER,
            last_epoch=old.epoch if keep_last else NO_EPOCH,
            timeout_ms=timeout_ms,
            state=TransactionState.EMPTY,
            partitions=set(),
            groups=set(),
            start_ms=-1,
        )
        if old.exhausted or (old.open and old.epoch + 1 >= LAST_EPOCH):
            new.last_producer_id = old.producer_id
            new.producer_id, new.epoch = self._allocate(unit), 0
        if old.open:
            marker_epoch = old.epoch + 1
            self._stage_end(unit, old, new, commit=False, marker_epoch=marker_epoch)
            old.epoch = marker_epoch  # its owner is told that it is fenced, also before that is durable
        else:
            self._save(unit, new)
            self._keep(new)
        return new

    def _allocate(self, unit: WriteUnit) -> int:
        """A producer id; may be told once `unit` is durable."""
        if self._next_id == self._reserved:
            self._reserved += BLOCK
            unit.put(COUNTER_SPACE, "next", str(self._reserved).encode())
        self._next_id += 1
        return self._next_id - 1

    def check_append(self, producer_id: int, epoch: int, topic: str, partition: int) -> Code:
        """The error code for a transactional append to this partition; NONE if it is allowed."""
        transaction = self._by_producer.get(producer_id)
        if transaction is None:
            return Code.INVALID_PRODUCER_ID_MAPPING
        if transaction.epoch != epoch:
            return Code.INVALID_PRODUCER_EPOCH
        if not transaction.open or (topic, partition) not in transaction.partitions:
            return Code.INVALID_TXN_STATE
        return Code.NONE

    # ---- a transaction

    async def add_partitions(
        self, transactional_id: str, producer_id: int, epoch: int, partitions: Iterable[tuple[str, int]]
    ) -> Code:
        """AddPartitionsToTxn; begins the transaction if none is open."""
        code = self._check(transactional_id, producer_id, epoch)
        if code is Code.NONE:
            transaction = self._begin(transactional_id)
            transaction.partitions.update(partitions)
            await self._saved(transaction)
        return code

    async def add_group(self, transactional_id: str, producer_id: int, epoch: int, group: str) -> Code:
        """AddOffsetsToTxn; begins the transaction if none is open."""
        code = self._check(transactional_id, producer_id, epoch) if group else Code.INVALID_GROUP_ID
        if code is Code.NONE:
            transaction = self._begin(transactional_id)
            transaction.groups.add(group)
            await self._saved(transaction)
        return code

    async def commit_offsets(
        self,
        transactional_id: str,
        producer: tuple[int, int],
        group: str,
        offsets: Offsets,
        *,
        member: tuple[int, str, str | None] = (-1, "", None),
    ) -> Code:
        """TxnOffsetCommit for a producer (id, epoch) and, since v3, a group member (generation, id, instance id)."""
        code = self._check(transactional_id, *producer)
        if code is Code.NONE:
            transaction = self._by_id[transactional_id]
            if not transaction.open or group not in transaction.groups:
                code = Code.INVALID_TXN_STATE
        if code is Code.NONE:
            code = self._groups.check_commit(group, *member, transactional=True)
        if code is Code.NONE:
            unit = self._store.unit()
            self._offsets.stage_pending(unit, group, producer[0], offsets)
            await self._store.commit(unit)
        return code

    async def end(self, transactional_id: str, producer_id: int, epoch: int, *, commit: bool) -> Code:
        """EndTxn; answered when the end is durable and visible."""
        code = self._check(transactional_id, producer_id, epoch)
        if code is not Code.NONE:
            return code
        transaction = self._by_id[transactional_id]
        answer = transaction.check_end(commit=commit)
        if answer is not None:
            return answer
        state = TransactionState.COMPLETE_COMMIT if commit else TransactionState.COMPLETE_ABORT
        unit = self._store.unit()
        after = msgspec.structs.replace(transaction, state=state)
        self._stage_end(unit, transaction, after, commit=commit, marker_epoch=epoch)
        await self._store.commit(unit)
        return Code.NONE

    def get(self, transactional_id: str) -> Transaction | None:
        """The transactional id's state, to be read only."""
        return self._by_id.get(transactional_id)

    def all(self) -> list[Transaction]:
        """Every transactional id, to be read only."""
        return list(self._by_id.values())

    # ---- inside

    def _check(self, transactional_id: str, producer_id: int, epoch: int) -> Code:
        if not transactional_id:
            return Code.INVALID_REQUEST
        transaction = self._by_id.get(transactional_id)
        return Code.INVALID_PRODUCER_ID_MAPPING if transaction is None else transaction.check(producer_id, epoch)

    def _begin(self, transactional_id: str) -> Transaction:
        transaction = self._by_id[transactional_id]
        if not transaction.open:
            transaction.state = TransactionState.ONGOING
            transaction.start_ms = self._clock.wall_ms()
            self._keep(transaction)
        return transaction

    def _stage_end(
        self, unit: WriteUnit, transaction: Transaction, after: Transaction, *, commit: bool, marker_epoch: int
    ) -> None:
        """Put the end of the open transaction into the unit; `after` replaces it when that is durable."""
        transaction.state = TransactionState.PREPARE_COMMIT if commit else TransactionState.PREPARE_ABORT
        self._stop_timeout(transaction.id)
        for topic, partition in sorted(transaction.partitions):
            log = self._logs(topic, partition)
            # Not where it wrote nothing: the topic may have been deleted and made anew since the partition was added,
            # and a marker in a log without records looks like the trace of an earlier life.
            if log is not None and log.producers.in_transaction(transaction.producer_id):
                log.stage_marker(unit, transaction.producer_id, marker_epoch, commit=commit)
        self._offsets.stage_end(unit, transaction.producer_id, transaction.groups, commit=commit)
        after.partitions, after.groups, after.start_ms = set(), set(), -1
        self._save(unit, after)
        unit.then(Effect(partial(self._keep, after)))

    def _keep(self, transaction: Transaction) -> None:
        """This is the id's state now."""
        old = self._by_id.get(transaction.id)
        if old is not None:
            self._by_producer.pop(old.producer_id, None)
        self._by_id[transaction.id] = transaction
        self._by_producer[transaction.producer_id] = transaction
        self._stop_timeout(transaction.id)
        if transaction.open:
            left_ms = transaction.start_ms + transaction.timeout_ms - self._clock.wall_ms()
            abort = partial(self._abort_overdue, transaction)
            self._timeouts[transaction.id] = self._clock.call_later(max(left_ms, 0) / 1000, abort)

    def _save(self, unit: WriteUnit, transaction: Transaction) -> None:
        transaction.updated_ms = self._clock.wall_ms()
        unit.put(SPACE, transaction.id, msgspec.msgpack.encode(transaction))

    async def _saved(self, transaction: Transaction) -> None:
        unit = self._store.unit()
        self._save(unit, transaction)
        await self._store.commit(unit)

    def _abort_overdue(self, transaction: Transaction) -> None:
        """The transaction took too long: abort it, and fence its producer with the epoch that its markers carry."""
        if self._by_id.get(transaction.id) is not transaction or not transaction.open:
            return
        epoch = transaction.epoch + 1
        after = msgspec.structs.replace(
            transaction, epoch=epoch, last_epoch=NO_EPOCH, state=TransactionState.COMPLETE_ABORT
        )
        unit = self._store.unit()
        self._stage_end(unit, transaction, after, commit=False, marker_epoch=epoch)
        commit_unheard(self._store, unit)

    def _stop_timeout(self, transactional_id: str) -> None:
        timer = self._timeouts.pop(transactional_id, None)
        if timer is not None:
            timer.cancel()

    def _expire(self) -> None:
        """Forget transactional ids that nobody has used for long."""
        self._expiry = self._clock.call_later(EXPIRY_CHECK_S, self._expire)
        limit_ms = self._clock.wall_ms() - self._expiration_ms
        unit = self._store.unit()
        for transaction in self.all():
            if not transaction.open and not transaction.ending and transaction.updated_ms <= limit_ms:
                del self._by_id[transaction.id]
                del self._by_producer[transaction.producer_id]
                unit.delete(SPACE, transaction.id)
        commit_unheard(self._store, unit)
