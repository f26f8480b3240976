"""The translator knows how words are to be written: the latest translation of each word, in translator-table.

Words and translations are plain UTF-8 strings, no JSON. An empty translation deletes the word from messages.
"""

from gokamsg.engine import Context, GroupGraph, Input, Persist, String, define_group

GROUP = "translator"
TABLE = "translator-table"
TRANSLATE_WORD = "translate-word"
WORD = String()


def translate(context: Context, word: str) -> None:
    context.set_value(word)


def graph() -> GroupGraph:
    """The translator's group."""
    return define_group(GROUP, Input(TRANSLATE_WORD, WORD, translate), Persist(WORD))
