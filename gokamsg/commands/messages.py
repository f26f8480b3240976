"""send, block, unblock, translate: what a person does from the terminal."""

from typing import TYPE_CHECKING, Annotated, Any

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import UsageError

from .kafka import client_config, make_topics
from .registration import argument, command

if TYPE_CHECKING:
    from gokamsg.engine import Codec

User = Annotated[str, argument("USER", "Whose messages the filter drops, or passes on again.")]


def refuse_bad(objection: str | None) -> None:
    if objection:
        raise UsageError(objection)


@command("send", "Send a message.")
def send(
    settings: Settings,
    sender: Annotated[str, argument("FROM", "Who writes.")],
    recipient: Annotated[str, argument("TO", "Who gets it.")],
    text: Annotated[str, argument("TEXT", "The message.")],
) -> None:
    from gokamsg.messaging.messages import MESSAGE, RECEIVED, SENT, Message, objection_to_user

    refuse_bad(objection_to_user(sender, "sender's name") or objection_to_user(recipient, "recipient's name"))
    topic, key = (RECEIVED, recipient) if settings.direct else (SENT, sender)
    say(settings, topic, key, Message(sender, recipient, text), MESSAGE, f"Sent to {recipient}")


@command("block", "Block a user: the filter drops what they send.")
def block(settings: Settings, user: User) -> None:
    set_blocked(settings, user, blocked=True)


@command("unblock", "Lift the block of a user.")
def unblock(settings: Settings, user: User) -> None:
    set_blocked(settings, user, blocked=False)


def set_blocked(settings: Settings, user: str, *, blocked: bool) -> None:
    from gokamsg.messaging.blocker import BLOCK_EVENT, BLOCK_USER, BlockEvent
    from gokamsg.messaging.messages import objection_to_user

    refuse_bad(objection_to_user(user))
    done = f"{user} is blocked" if blocked else f"{user} is no longer blocked"
    say(settings, BLOCK_USER, user, BlockEvent(unblock=not blocked), BLOCK_EVENT, done)


@command("translate", "Replace a word in messages; an empty text deletes it from them.")
def translate(
    settings: Settings,
    word: Annotated[str, argument("WORD", "One word, exactly as it stands in messages.")],
    text: Annotated[str, argument("TEXT", "What is written in its place; '' leaves it out.")],
) -> None:
    from gokamsg.messaging.messages import objection_to
    from gokamsg.messaging.translator import TRANSLATE_WORD, WORD

    refuse_bad(objection_to(word, "word"))
    if " " in word:
        raise UsageError(f"{word!r} is more than one word; words are what stands between spaces.")
    say(
        settings,
        TRANSLATE_WORD,
        word,
        text,
        WORD,
        f"{word} is now written {text}" if text else f"{word} is now left out",
    )


def say(settings: Settings, topic: str, key: str, value: Any, codec: "Codec[Any]", done: str) -> None:
    """Emits one record, waits for the acknowledgement, and says what happened and where the record went."""
    from gokamsg.engine import Emitter

    config = client_config(settings)
    make_topics(config, [topic])
    position = Emitter(config, topic, codec).emit_sync(key, value)
    if settings.json:
        place = {"topic": position.topic, "partition": position.partition, "offset": position.offset}
        console.data({"key": key, **place})
    else:
        place_text = f"{position.topic}/{position.partition}, offset {position.offset}"
        console.out(f"{console.visible(done)} ({place_text}).")
