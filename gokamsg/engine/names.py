"""Names of streams, tables and groups, and the topics that belong to a group. Pure.

A group owns two topics: its table's changelog, "<group>-table", and its loop, "<group>-loop", as in Goka. Topic and
group names are held to Kafka's rules for topics, because a group's name becomes part of both.
"""

import re
from typing import TypeAlias

Stream: TypeAlias = str
Table: TypeAlias = str
Group: TypeAlias = str

TABLE_SUFFIX = "-table"
LOOP_SUFFIX = "-loop"
QUARANTINE_SUFFIX = "-quarantine"

_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)


def table_of(group: Group) -> Table:
    """The changelog topic of the group's table."""
    return group + TABLE_SUFFIX


def loop_of(group: Group) -> Stream:
    """The topic by which the group sends records to itself."""
    return group + LOOP_SUFFIX


def quarantine_of(group: Group) -> Table:
    """The table of the group's records that could not be handled."""
    return group + QUARANTINE_SUFFIX


def quarantine_commands_of(group: Group) -> Stream:
    """The stream of what people tell the group to do with them."""
    return quarantine_of(group) + "-commands"


def is_legal(name: str) -> bool:
    """Whether Kafka accepts the name for a topic."""
    return _LEGAL.fullmatch(name) is not None and name not in (".", "..")
