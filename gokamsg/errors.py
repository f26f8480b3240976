"""The errors a person can meet. Imports nothing.

Every message says what failed, which thing (with its identifiers), why, and what to do. The command line prints it on
one line and exits with the class's code; a traceback appears only with --debug.
"""


class GokamsgError(Exception):
    """Something failed that a person can act on; str() is a sentence for them."""

    exit_code = 1


class UsageError(GokamsgError):
    """The command, option or setting itself is wrong."""

    exit_code = 2


class BrokerUnavailableError(GokamsgError):
    """No Kafka broker answers at the given addresses, or it refuses us."""


class OffsetsPendingError(BrokerUnavailableError):
    """Committed offsets are not told yet: a transaction that they are part of is still open."""


class TopicError(GokamsgError):
    """A topic is missing, or has another partition count or cleanup policy than is needed."""


class StateError(GokamsgError):
    """The local state directory cannot be used (permissions, disk full, lock)."""


class IdentityError(GokamsgError):
    """Another process uses this worker's identity (a copied or shared state directory)."""


class OffsetsLostError(GokamsgError):
    """Committed offsets are gone or point below the log's start; --start decides where to go on."""


class GraphError(GokamsgError):
    """A group graph breaks one of the rules of its edges."""


class CodecError(GokamsgError):
    """A value cannot be encoded or decoded."""


class ProcessingError(GokamsgError):
    """A callback failed, or used its context in a way that its graph does not allow."""


class VisitAbortedError(GokamsgError):
    """A visit of a table was broken off before all of it was committed; ask for it again."""


class CorruptBatchError(GokamsgError):
    """A record batch read from a topic is damaged: its checksum, structure or compression is wrong."""


class PositionLostError(OffsetsLostError):
    """A position is not in the log any more; `.positions` maps (topic, partition) to the offset asked for."""

    def __init__(self, message: str, positions: dict[tuple[str, int], int]) -> None:
        super().__init__(message)
        self.positions = positions


class TransactionAbortedError(GokamsgError):
    """A transaction did not commit: nothing of it is visible. Abort it and do its work again."""


class OutcomeUnknownError(GokamsgError):
    """A commit was sent and not answered: it may have happened. Make a new producer and read the committed offsets."""


class FencedError(GokamsgError):
    """This producer or member was replaced by another with the same identity; nothing more may be written with it."""
