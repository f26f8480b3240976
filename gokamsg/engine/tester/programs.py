"""What the tester runs, turn by turn: processors, which are started again after each crash, and views."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.processor import Processor
from gokamsg.engine.state import ProcessorState
from gokamsg.engine.stats import ProcessorStatus
from gokamsg.engine.tester.session import Crash, Disk, Session
from gokamsg.engine.view import View

NO_DIRECTORY = Path("/nonexistent/gokamsg-tester")


class TestedProcessor:
    """One instance of a group in a tester. Over crashes and restarts it keeps its place (ids and local tables).

    An error that it cannot go on after is raised to the test, kept in `error`, and ends it until start().
    """

    __test__ = False  # for pytest: no test class

    def __init__(
        self,
        graph: GroupGraph,
        open_session: Callable[[Disk], Session],
        catch_up: Callable[[], None],
        options: dict[str, Any],
    ) -> None:
        graph.validate()
        self.graph = graph
        self.crashes = 0
        self.error: Exception | None = None
        self._open_session = open_session
        self._catch_up = catch_up
        self._options = ProcessorOptions(**{"state_dir": NO_DIRECTORY, "on_error": "stop", **options})
        self._disk = Disk()
        self._session: Session | None = None
        self._processor: Processor | None = None
        self._turns: Generator[None] | None = None
        self._stopped = False

    @property
    def processor(self) -> Processor:
        """The engine's processor of the present life; it is brought up first if there is none."""
        if self._processor is None:
            self._catch_up()
        assert self._processor is not None
        return self._processor

    def get(self, key: str) -> Any:
        """As Processor.get(): the committed value of a key in this instance's partitions."""
        return self.processor.get(key)

    def status(self) -> ProcessorStatus:
        """As Processor.status()."""
        return self.processor.status()

    def visit_all(self, name: str, meta: Any = None) -> int:
        """As Processor.visit_all(), run to its end."""
        visit = self.processor.request_visit(name, meta)
        self._catch_up()
        return visit.result(0)

    def crash(self, *, lose_state: bool = False) -> None:
        """Kill it now, as kill -9 does; it is started again with the tester's next work, from what was committed.
        With `lose_state` its local tables are gone too, as on another machine."""
        if self._session is not None:
            self._session.alive = False
        self._end()
        self.crashes += 1
        if lose_state:
            self._disk.lose()

    def restart(self) -> None:
        """Stop it in good order; it is started again with the tester's next work."""
        self.stop()
        self._stopped = False

    def stop(self) -> None:
        """Stop it in good order, for good: it commits, and its partitions go to the group's other instances."""
        self._stopped = True
        if self._processor is not None and self._turns is not None:
            self._processor.stop()
            try:
                for _ in self._turns:
                    pass
            except Crash:
                self.crashes += 1
            finally:
                self._end()

    def start(self) -> None:
        """Bring it up again after stop() or an error, with the tester's next work."""
        self.error = None
        self._stopped = False

    # --- for the tester -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it is at work."""
        return self._turns is not None

    def turn(self) -> None:
        """One turn of its worker. Raises what the processor cannot go on after; then it is stopped."""
        if self._stopped:
            return
        if self._turns is None:
            self._session = self._open_session(self._disk)
            self._processor = Processor(self._session, self.graph, self._options)
            self._turns = self._processor.turns()
        try:
            next(self._turns)
        except Crash:
            self.crashes += 1
            self._end()
        except Exception as error:
            self.error = error
            self._stopped = True
            self._end()
            raise

    def settled(self) -> bool:
        """Whether it has nothing to do."""
        if self._stopped:
            return True
        session, processor = self._session, self._processor
        if session is None or processor is None or processor.state.state != ProcessorState.RUNNING:
            return False
        return processor.idle and not session.behind()

    def _end(self) -> None:
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.close()
        self._session = self._processor = None


class TestedView:
    """A view in a tester, turn by turn."""

    __test__ = False

    def __init__(self, view: View[Any], session: Session) -> None:
        self._view = view
        self._session = session
        self._turns: Generator[None] | None = view.turns()

    def turn(self) -> None:
        """One turn; raises what ended the view."""
        if self._turns is not None:
            try:
                next(self._turns)
            except StopIteration:  # somebody called stop()
                self._turns = None
            except Exception:
                self._turns = None
                raise

    def settled(self) -> bool:
        """Whether it has read all there is."""
        return self._turns is None or (self._view.recovered and not self._session.behind())

    def close(self) -> None:
        """End it."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.close()
