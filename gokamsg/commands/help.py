"""What the help of each command says beyond its summary and its options: a line for the list, a word more, examples.

Pure. The examples are checked against the commands and their options by the tests.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Help:
    """`short` stands in the list of commands, where the summary is longer than a line."""

    examples: tuple[str, ...] = ()
    short: str | None = None
    more: str = ""


HELP = {
    "up": Help(
        (
            "gokamsg up",
            "gokamsg up --demo --port 8081",
            "gokamsg up --data-dir ./data --workers 2",
            "gokamsg up --brokers kafka-1:9092,kafka-2:9092",
        ),
        more="It says when it is ready and what to try. Ctrl-C, or q, stops all of it; everything is kept for the "
        "next time.",
    ),
    "broker": Help(
        ("gokamsg broker", "gokamsg broker --port 0 --json --data-dir ./data"),
        short="Run the embedded Kafka broker alone.",
        more="It prints its address once it accepts connections, and runs until Ctrl-C. Any Kafka client can use it.",
    ),
    "serve": Help(
        (
            "gokamsg serve",
            "gokamsg serve --port 8081 --brokers kafka-1:9092,kafka-2:9092",
            """curl -d '{"to": "Alice", "content": "Hey!"}' localhost:8080/Bob/send""",
            "curl localhost:8080/Alice/feed",
        ),
        short="Run the HTTP service.",
    ),
    "process": Help(
        (
            "gokamsg process",
            "gokamsg process --role filter --role collector --workers 2",
            "gokamsg process --role detector --detect-messages 50 --detect-share 0.6",
            "gokamsg process --metrics-port 9464 --metrics-host 0.0.0.0",
        ),
        short="Run one or several roles.",
        more="Each worker is a process of its own, and is started again if it fails. Instances of a role share its "
        "partitions, on one machine or on many. Ctrl-C stops them once they have committed.",
    ),
    "loadgen": Help(
        (
            "gokamsg loadgen --rate 200 --count 2000",
            "gokamsg loadgen --seed 1 --spam 0.5",
            "gokamsg loadgen --file messages.jsonl --rate 1000",
        ),
        short="Send traffic through the service.",
    ),
    "send": Help(
        ("gokamsg send Bob Alice 'Hey, how are you doing?'", "gokamsg send --direct Bob Alice 'Past the filter.'"),
        more="It says where the message is once the brokers have acknowledged it.",
    ),
    "feed": Help(("gokamsg feed Alice", "gokamsg feed Alice --follow", "gokamsg feed Alice --json | jq -r .Content")),
    "block": Help(("gokamsg block Bob", "gokamsg block Bob --json"), short="Block a user."),
    "unblock": Help(("gokamsg unblock Bob",)),
    "translate": Help(
        ("gokamsg translate lunch '1[_]n<)-('", "gokamsg translate lunch ''"), short="Replace a word in messages."
    ),
    "status": Help(
        ("gokamsg status", "gokamsg status --watch", "gokamsg status --json | jq 'select(.lag > 0)'"),
        more="Partitions are those that some member of the group has; lag counts the records that it has not committed "
        "yet. Restores are shown of the workers on this machine that have the same state directory.",
    ),
    "verify": Help(
        ("gokamsg verify", "gokamsg verify --role filter --role collector", "gokamsg verify --json"),
        short="Compare local tables with their changelogs.",
        more="Stop the workers and the service first: tables of running processes are locked, and are named. The file "
        "of a partition that differs is removed; the next start fills it again from Kafka. The tables of gokamsg up "
        "lie in its data directory under tables, which --state-dir can name.",
    ),
    "quarantine list": Help(
        ("gokamsg quarantine list", "gokamsg quarantine list --role filter --key Bob --json"),
        more="A record that could not be processed is put aside, and the later ones of its key stand behind it, in "
        "order; other keys go on.",
    ),
    "quarantine show": Help(
        ("gokamsg quarantine show message_sent/3/17",), short="Show one record, with its error and traceback."
    ),
    "quarantine edit": Help(
        (
            """gokamsg quarantine edit message_sent/3/17 --value '{"From":"Bob","To":"Alice","Content":"Hey!"}'""",
            "gokamsg quarantine edit message_sent/3/17 --value -",
        ),
        short="Replace the value of one record.",
        more="It stays where it is until the key is retried.",
    ),
    "quarantine retry": Help(
        ("gokamsg quarantine retry", "gokamsg quarantine retry --role filter --key Bob"),
        short="Process the records of all keys, or of one.",
        more="A key's records are processed in order, up to the first that fails again; with the last one the key is "
        "free. It is done by the role's workers, so they have to run.",
    ),
    "quarantine drop": Help(
        ("gokamsg quarantine drop message_sent/3/17",),
        short="Remove one record for good.",
        more="Those that stand behind it stay until the key is retried.",
    ),
    "topics create": Help(
        ("gokamsg topics create", "gokamsg topics create --partitions 24 --replication 3 --retention 30d"),
        short="Create the topics.",
        more="The other commands do it too, with the defaults. The number of partitions cannot be changed later.",
    ),
    "topics describe": Help(
        ("gokamsg topics describe", "gokamsg topics describe --json"),
        short="Show the topics, and check that they fit together.",
        more="Bytes are those on disk, of one replica; offsets count records, transaction markers and what compaction "
        "has removed.",
    ),
}
