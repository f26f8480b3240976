"""The plans of a group's leader.

Invariants of the sticky plan: every partition belongs to exactly one member; members differ by one partition at most;
all topics of a member get the same partitions; no plan that is as balanced moves fewer partitions; the order in which
members are listed changes nothing; where two members claim a partition, the later generation has it.
"""

import random
from collections.abc import Mapping

import pytest

from gokamsg.engine.assignor import (
    Claim,
    Plan,
    decode_user_data,
    encode_user_data,
    goka_plan,
    plan,
    sticky_plan,
)
from gokamsg.errors import TopicError

T = ("t",)


def shares(result: Plan, topic: str) -> dict[str, list[int]]:
    return {member: topics.get(topic, []) for member, topics in result.items()}


@pytest.mark.parametrize(
    ("partitions", "members", "wanted"),
    [
        (8, 3, [[0, 1, 2], [3, 4], [5, 6, 7]]),
        (8, 5, [[0, 1], [2], [3, 4], [5], [6, 7]]),
        (3, 5, [[0], [], [1], [], [2]]),
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
@pytest.mark.goka("group: Goka's plan")
def test_goka_s_plan(partitions: int, members: int, wanted: list[list[int]]) -> None:
    names = [f"goka-{index}" for index in range(members)]
    result = goka_plan(dict.fromkeys(reversed(names), ("b", "a")), {"a": range(partitions), "b": range(partitions)})
    assert [result[name]["a"] for name in names] == wanted
    assert [result[name]["b"] for name in names] == wanted


@pytest.mark.goka("group: members ordered by bytes")
def test_goka_s_plan_orders_members_by_bytes_and_gives_each_only_its_topics() -> None:
    result = goka_plan({"ü": ["a"], "z": ["a", "b"], "Z": ["b"]}, {"a": [2, 0, 1], "b": [0, 1, 2]})
    assert result == {"Z": {"b": [0]}, "z": {"a": [1], "b": [1]}, "ü": {"a": [2]}}


@pytest.mark.goka("group: topics of unequal partitions are refused")
def test_topics_with_different_partitions_are_refused() -> None:
    for make in (goka_plan, lambda members, of: sticky_plan(members, {}, of)):
        with pytest.raises(TopicError, match="'a' and 'b' are consumed together, but have 2 and 3 partitions"):
            make({"m": ["a", "b"]}, {"a": [0, 1], "b": [0, 1, 2]})
        with pytest.raises(TopicError, match="'gone' of the group does not exist"):
            make({"m": ["gone"]}, {})


def test_user_data_comes_back_and_anybody_else_s_is_none_of_ours() -> None:
    assert decode_user_data(encode_user_data(7, [5, 3])) == Claim(7, (3, 5))
    assert decode_user_data(encode_user_data(-1, [])) == Claim(-1, ())
    ours = encode_user_data(7, [3, 5])
    other_version = ours[:9] + b"\x02" + ours[10:]
    for data in (None, b"", b"\x00\x01", ours[:-1], ours + b"x", b"x" + ours[1:], other_version):
        assert decode_user_data(data) is None


@pytest.mark.goka("group: protocol named copartition, user data none of Goka's")
def test_a_member_that_does_not_claim_makes_it_goka_s_plan() -> None:
    members = {"a": ["t"], "b": ["t"]}
    claims = {"a": encode_user_data(3, [1, 2]), "b": encode_user_data(3, [0, 3])}
    topics = {"t": range(4)}
    assert shares(plan(members, claims, topics), "t") == {"a": [1, 2], "b": [0, 3]}
    assert shares(plan(members, {**claims, "b": None}, topics), "t") == {"a": [0, 1], "b": [2, 3]}
    assert shares(plan(members, {"a": claims["a"]}, topics), "t") == {"a": [0, 1], "b": [2, 3]}


def test_a_claim_of_an_older_generation_loses() -> None:
    claims = {"zombie": Claim(4, (0, 1, 2, 3)), "a": Claim(6, (0, 1)), "b": Claim(6, (2, 3))}
    result = shares(sticky_plan(dict.fromkeys(claims, T), claims, {"t": range(4)}), "t")
    assert result["a"] in ([0, 1], [0], [1])
    assert result["b"] in ([2, 3], [2], [3])
    assert len(result["zombie"]) == 1


def test_a_member_that_comes_back_gets_what_it_knew() -> None:
    claims = {"stayed": Claim(9, tuple(range(8))), "back": Claim(7, (1, 4, 6, 7))}
    result = shares(sticky_plan(dict.fromkeys(claims, T), claims, {"t": range(8)}), "t")
    assert result == {"stayed": [0, 2, 3, 5], "back": [1, 4, 6, 7]}


def check(result: Plan, claims: Mapping[str, Claim], topics: list[str], partitions: int) -> None:
    first = shares(result, topics[0])
    assert all(shares(result, topic) == first for topic in topics)
    assert sorted(partition for share in first.values() for partition in share) == list(range(partitions))
    sizes = [len(share) for share in first.values()]
    assert max(sizes) - min(sizes) <= 1
    owner: dict[int, str] = {}
    for member in sorted(claims, key=lambda member: (claims[member].generation, [-ord(c) for c in member])):
        owner.update(dict.fromkeys((p for p in claims[member].owned if p < partitions), member))
    owned = {member: sum(holder == member for holder in owner.values()) for member in first}
    kept = sum(owner.get(partition) == member for member, share in first.items() for partition in share)
    # The most that any balanced plan can leave in place: the larger shares go to those that own the most.
    each, over = divmod(partitions, len(first))
    richest = sorted(owned.values(), reverse=True)
    assert kept == sum(min(count, each + (place < over)) for place, count in enumerate(richest))


def test_the_sticky_plan_keeps_its_invariants_over_random_histories() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        partitions, topics = chance.randrange(1, 25), ["t", "loop", "other"][: chance.randrange(1, 4)]
        of = {topic: range(partitions) for topic in topics}
        alive: dict[str, Claim] = {"m0": Claim(-1, ())}
        asleep: dict[str, Claim] = {}
        for generation in range(1, 25):
            for _ in range(chance.randrange(3)):
                event = chance.random()
                if event < 0.4:
                    alive[f"m{chance.randrange(1000)}"] = Claim(-1, ())
                elif event < 0.6 and asleep:
                    name = chance.choice(sorted(asleep))
                    alive[name] = asleep.pop(name)
                elif len(alive) > 1:
                    name = chance.choice(sorted(alive))
                    claim = alive.pop(name)
                    if chance.random() < 0.7:
                        asleep[name] = claim
            if chance.random() < 0.05:
                partitions += chance.randrange(1, 4)
                of = {topic: range(partitions) for topic in topics}
            members = dict.fromkeys(alive, topics)
            result = sticky_plan(members, alive, of)
            shuffled = list(alive)
            chance.shuffle(shuffled)
            again = sticky_plan(dict.fromkeys(shuffled, topics), {name: alive[name] for name in shuffled}, of)
            try:
                assert again == result
                check(result, alive, topics, partitions)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, generation {generation}: {alive} -> {result}") from error
            for name in alive:
                alive[name] = Claim(generation, tuple(result[name][topics[0]]))


def test_nothing_moves_when_nothing_changed() -> None:
    topics = {"t": range(7)}
    claims: dict[str, Claim] = {name: Claim(-1, ()) for name in ("c", "a", "b")}
    result = sticky_plan(dict.fromkeys(claims, T), claims, topics)
    claims = {name: Claim(1, tuple(result[name]["t"])) for name in claims}
    assert sticky_plan(dict.fromkeys(claims, T), claims, topics) == result


def test_no_members_and_no_topics() -> None:
    assert sticky_plan({}, {}, {}) == {} == goka_plan({}, {})
    assert sticky_plan({"m": []}, {}, {}) == {"m": {}} == goka_plan({"m": []}, {})
