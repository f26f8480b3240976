"""What is said: the message, its topics, and the rules for names.

The bytes on the topics are Goka's: JSON with the fields From, To and Content, in this order. Pure.
"""

import msgspec

from gokamsg.engine import Json

SENT = "message_sent"
"""Every message as it was sent; keyed by the sender."""

RECEIVED = "message_received"
"""Messages that passed the filter; keyed by the recipient."""

NAME_BYTES = 1024
"""The longest name, in UTF-8 bytes."""


class Message(
    msgspec.Struct,
    gc=False,
    forbid_unknown_fields=True,
    rename={"sender": "From", "recipient": "To", "content": "Content"},
):
    """One message from one user to another."""

    sender: str = ""
    recipient: str = ""
    content: str = ""


MESSAGE = Json(Message)


def objection_to(name: str, what: str) -> str | None:
    """Why `name` cannot be a user's name or a word, as a sentence that begins with `what`; None if it can."""
    if not name:
        return f"the {what} is empty; give it at least one character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"the {what} {name!r} is not valid Unicode text; write it in UTF-8"
    if size > NAME_BYTES:
        return f"the {what} {name[:20] + '…'!r} is too long ({size:,} bytes); the limit is {NAME_BYTES:,} bytes"
    return None


def objection_to_user(name: str, what: str = "user name") -> str | None:
    """objection_to(), and the reservation of names that begin with a hyphen (the service's own addresses do)."""
    if name.startswith("-"):
        shown = name if len(name) <= 40 else name[:20] + "…"
        return f"the {what} {shown!r} begins with '-'; such names are reserved"
    return objection_to(name, what)
