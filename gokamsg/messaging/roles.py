"""The five roles, by name: what each does, and how its group is built. In the order in which they are started.

Which topics a role needs follows from its graph; nothing is listed twice. Pure.
"""

from collections.abc import Callable

from msgspec import Struct

from gokamsg.engine import GroupGraph

from . import blocker, collector, detector, filter, translator  # noqa: A004 - the role's name is Goka's


class RoleOptions(Struct, frozen=True):
    """What can be set about the roles."""

    keep: int = 5
    detect_messages: int = 200
    detect_share: float = 0.5


class Role(Struct, frozen=True):
    """A processor that `gokamsg process` can run."""

    name: str
    group: str
    summary: str
    build: Callable[[RoleOptions], GroupGraph]
    commit_interval_s: float = 0.0
    """Above 0 where nobody waits for the outcome: messages are gathered that long, which spares the brokers work."""


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("blocker", blocker.GROUP, "remembers who is blocked", lambda options: blocker.graph()),
        Role("translator", translator.GROUP, "remembers how words are written", lambda options: translator.graph()),
        Role("collector", collector.GROUP, "keeps each user's feed", lambda options: collector.graph(options.keep)),
        Role("filter", filter.GROUP, "drops messages of the blocked, translates words", lambda options: filter.graph()),
        Role(
            "detector",
            detector.GROUP,
            "blocks spammers",
            lambda options: detector.graph(options.detect_messages, options.detect_share),
            commit_interval_s=0.1,
        ),
    )
}
