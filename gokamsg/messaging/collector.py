"""The collector keeps each user's latest messages in its table, which feeds are read from.

Consumes message_received, keeps the latest `keep` messages of a recipient in collector-table, oldest first.
"""

from gokamsg.engine import Context, GroupGraph, Input, Json, Persist, define_group

from .messages import MESSAGE, RECEIVED, Message

GROUP = "collector"
TABLE = "collector-table"
MESSAGES = Json(list[Message])


def graph(keep: int = 5) -> GroupGraph:
    """The collector's group, keeping `keep` messages of each user."""

    def collect(context: Context, message: Message) -> None:
        messages = context.value() or []
        messages.append(message)
        context.set_value(messages[-keep:])

    return define_group(GROUP, Input(RECEIVED, MESSAGE, collect), Persist(MESSAGES))
