"""Filter and collector as one would write them with Quix Streams, exactly-once, for benchmarks/throughput.py.

The filter reads its tables into dictionaries at the start, which was twice as fast as Quix Streams' own state. The
collector keeps its lists in that state, whose changelog is a topic of Quix Streams' own (TABLE). It commits every half
second, as gokamsg does under load; by default, every five, one commit would be all there is to see. Keys are placed as
Goka places them, by librdkafka's FNV-1a. Everything else is Quix Streams' default.
"""

import argparse
from typing import TYPE_CHECKING, Any

from tests.system import fold

if TYPE_CHECKING:
    from quixstreams import Application, State

TABLE, ROW = "changelog__collector--message_received--default", "feed"
COMMIT_S = 0.5


def check_collector(address: str, expected: dict[str, Any]) -> list[str]:
    """Every user's row holds the latest five messages; the changelog's keys are `<user>|"feed"`."""
    found = {key.removesuffix(f'|"{ROW}"'): feed for key, feed in fold.table(address, TABLE).items()}
    return fold.difference(expected, found)


def filter_role(app: "Application", address: str) -> None:
    blocked = {user for user, row in fold.table(address, "blocker-table").items() if row["Blocked"]}
    words = {record.key: (record.value or b"").decode() for record in fold.read(address, "translator-table")}

    def translate(message: dict[str, str]) -> dict[str, str]:
        message["Content"] = " ".join(words.get(word, word) for word in message["Content"].split(" "))
        return message

    sent, received = (app.topic(name, value_deserializer="json") for name in ("message_sent", "message_received"))
    messages = app.dataframe(sent)
    messages = messages.filter(lambda message: message["From"] not in blocked).apply(translate)
    messages.to_topic(received, key=lambda message: message["To"])


def collector_role(app: "Application", _address: str) -> None:
    def collect(message: dict[str, str], state: "State") -> None:
        feed: list[Any] = state.get(ROW, [])
        state.set(ROW, [*feed, message][-fold.FEED_LENGTH :])

    app.dataframe(app.topic("message_received", value_deserializer="json")).update(collect, stateful=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--role", choices=("filter", "collector"), required=True)
    parser.add_argument("--state", required=True)
    options = parser.parse_args()
    from quixstreams import Application

    app = Application(
        options.brokers,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=COMMIT_S,
        producer_extra_config={"partitioner": "fnv1a"},
        state_dir=options.state,
    )
    {"filter": filter_role, "collector": collector_role}[options.role](app, options.brokers)
    app.run()


if __name__ == "__main__":
    main()
