"""The detector blocks spammers: users who have sent at least a given share of a given number of messages.

It counts in detector-table what each user sent, and what each received by way of its loop (a message is keyed by its
sender; looping it back under the recipient's name brings it to the partition where the recipient is counted). A user
who is over the limit is blocked again by every further message, so unblocking a detected user does not last.
"""

import msgspec

from gokamsg.engine import Context, GroupGraph, Input, Json, Loop, Output, Persist, define_group

from .blocker import BLOCK_EVENT, BLOCK_USER, BlockEvent
from .messages import MESSAGE, SENT, Message

GROUP = "detector"
TABLE = "detector-table"


class Counters(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename={"sent": "Sent", "received": "Received"}):
    """How many messages a user sent and received."""

    sent: int = 0
    received: int = 0


COUNTERS = Json(Counters)


def graph(messages: int = 200, share: float = 0.5) -> GroupGraph:
    """The detector's group: blocks who sent at least `share` of at least `messages` sent and received ones."""

    def check(context: Context, counters: Counters) -> None:
        total = counters.sent + counters.received
        if total >= messages and counters.sent / total >= share:
            context.emit(BLOCK_USER, context.key(), BlockEvent())

    def detect_sender(context: Context, message: Message) -> None:
        counters = context.value() or Counters()
        counters.sent += 1
        context.set_value(counters)
        check(context, counters)
        context.loopback(message.recipient, message)

    def detect_recipient(context: Context, message: Message) -> None:
        counters = context.value() or Counters()
        counters.received += 1
        context.set_value(counters)
        check(context, counters)

    return define_group(
        GROUP,
        Input(SENT, MESSAGE, detect_sender),
        Loop(MESSAGE, detect_recipient),
        Output(BLOCK_USER, BLOCK_EVENT),
        Persist(COUNTERS),
    )
