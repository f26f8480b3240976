"""What is done at the first use of kafka-python's clients, done before it: some 0.1 s of CPU.

kafka-python makes the code that writes a request, and the code that reads its answer, when either is first needed, for
each version of it. A processor needs some forty until its first transaction is over. A process that forks others does
it once for all of them.
"""

from collections.abc import Iterator
from typing import Any, Final

from kafka.protocol import admin, consumer, metadata, producer

# The versions that Kafka 4 and the embedded broker agree on with kafka-python 3.0. Of another one the code is made when
# it is needed, as ever.
_VERSIONS: Final[dict[Any, dict[str, tuple[int, ...]]]] = {
    metadata: {"ApiVersions": (4,), "Metadata": (12, 13), "FindCoordinator": (6,)},
    admin: {"DescribeCluster": (1, 2), "DescribeConfigs": (4,)},
    consumer: {
        "JoinGroup": (7,),
        "SyncGroup": (5,),
        "Heartbeat": (4,),
        "LeaveGroup": (5,),
        "OffsetFetch": (8,),
        "OffsetCommit": (8,),
        "ListOffsets": (9, 11),
        "Fetch": (12,),
    },
    producer: {
        "InitProducerId": (4,),
        "Produce": (9,),
        "AddPartitionsToTxn": (3,),
        "AddOffsetsToTxn": (3,),
        "TxnOffsetCommit": (3,),
        "EndTxn": (3,),
    },
}


def warm_up() -> None:
    """Before a process forks those that have clients. Needs no broker, and starts no thread."""
    "localhost".encode("idna")  # Python loads this codec at the first look at a host's name
    for request, response, version in _messages():
        flexible = request.flexible_version_q(version)
        request._struct.compiled_encode_into(version, compact=flexible, tagged=flexible)
        response._struct.compiled_decode_from(version, compact=flexible, tagged=flexible, data_class=response[None])


def _messages() -> Iterator[tuple[Any, Any, int]]:
    for module, kinds in _VERSIONS.items():
        for kind, versions in kinds.items():
            for version in versions:
                yield getattr(module, f"{kind}Request"), getattr(module, f"{kind}Response"), version
