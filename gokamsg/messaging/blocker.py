"""The blocker knows who is blocked: it turns block and unblock events into blocker-table.

An unblocked user keeps a row that says so.
"""

import msgspec

from gokamsg.engine import Context, GroupGraph, Input, Json, Persist, define_group

GROUP = "blocker"
TABLE = "blocker-table"
BLOCK_USER = "block_user"


class BlockEvent(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"unblock": "Unblock"}):
    """Blocks a user, or lifts the block."""

    unblock: bool = False


class BlockValue(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"blocked": "Blocked"}):
    """Whether a user is blocked."""

    blocked: bool = False


BLOCK_EVENT = Json(BlockEvent)
BLOCK_VALUE = Json(BlockValue)


def block(context: Context, event: BlockEvent) -> None:
    context.set_value(BlockValue(blocked=not event.unblock))


def graph() -> GroupGraph:
    """The blocker's group."""
    return define_group(GROUP, Input(BLOCK_USER, BLOCK_EVENT, block), Persist(BLOCK_VALUE))
