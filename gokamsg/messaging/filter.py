"""The filter passes messages on to their recipients: those of blocked senders are dropped, words are translated.

Consumes message_sent (keyed by sender), emits to message_received (keyed by recipient). A word is what stands between
single spaces; it is replaced if it is found, exactly as written, in translator-table. Sender and recipient stay.
"""

from gokamsg.engine import Context, GroupGraph, Input, Join, Lookup, Output, define_group

from .blocker import BLOCK_VALUE
from .blocker import TABLE as BLOCKER_TABLE
from .messages import MESSAGE, RECEIVED, SENT, Message
from .translator import TABLE as TRANSLATOR_TABLE
from .translator import WORD

GROUP = "message_filter"


def filter_message(context: Context, message: Message) -> None:
    sender = context.join(BLOCKER_TABLE)
    if sender is not None and sender.blocked:
        return
    lookup = context.lookup
    words = message.content.split(" ")
    for index, word in enumerate(words):
        translation = lookup(TRANSLATOR_TABLE, word)
        if translation is not None:
            words[index] = translation
    message.content = " ".join(words)
    context.emit(RECEIVED, message.recipient, message)


def graph() -> GroupGraph:
    """The filter's group."""
    return define_group(
        GROUP,
        Input(SENT, MESSAGE, filter_message),
        Output(RECEIVED, MESSAGE),
        Join(BLOCKER_TABLE, BLOCK_VALUE),
        Lookup(TRANSLATOR_TABLE, WORD),
    )
