"""Page views, counted per URL, with who owns the page: an example of the engine that is not about messages.

    python examples/page_views.py run                      # the two processors, until Ctrl-C
    python examples/page_views.py own /pricing Dana        # says who owns a page
    python examples/page_views.py view /pricing /about     # somebody looked at these
    python examples/page_views.py top                      # the most viewed pages, and their owners

Two groups:

- page-owner keeps who owns which URL in its table, page-owner-table.
- page-views counts in page-views-table, joins page-owner-table (both have the URL for a key, so the owner of a page is
  where its views are), and tells the owner of every 10th view of a page in the topic owner_news, keyed by the owner.

A visit ("reset") walks over the whole table inside the processor: here it is asked for by a test, in a service of yours
perhaps every night. The broker is localhost:9092, or what GOKAMSG_BROKERS says.
"""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from gokamsg.engine import (
    ClientConfig,
    Context,
    Emitter,
    GroupGraph,
    Input,
    Join,
    Json,
    Output,
    Persist,
    Processor,
    ProcessorOptions,
    String,
    TopicManager,
    View,
    Visitor,
    define_group,
)

NEWS_EVERY = 10


class Visit(msgspec.Struct, forbid_unknown_fields=True):
    """Somebody looked at a page."""

    reader: str


class Page(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of a page."""

    views: int = 0
    owner: str = ""


VISIT, PAGE = Json(Visit), Json(Page)


def own(context: Context, owner: str) -> None:
    """The latest word on who owns a page counts; an empty one takes it away."""
    if owner:
        context.set_value(owner)
    else:
        context.delete()


def count(context: Context, visit: Visit) -> None:
    """One view more; its owner as of now."""
    page = context.value() or Page()
    page.views += 1
    page.owner = context.join("page-owner-table") or ""
    context.set_value(page)
    if page.owner and page.views % NEWS_EVERY == 0:
        context.emit("owner_news", page.owner, f"{context.key()} was viewed {page.views} times")


def reset(context: Context, at_least: int) -> None:
    """For a visit: forget what was viewed less often than `at_least`, count the others from 0."""
    page = context.value()
    if page.views < at_least:
        context.delete()
    else:
        context.set_value(Page(owner=page.owner))


def owners() -> GroupGraph:
    """Who owns which page."""
    return define_group("page-owner", Input("page_owner", String(), own), Persist(String()))


def views() -> GroupGraph:
    """How often each page was viewed."""
    return define_group(
        "page-views",
        Input("page_view", VISIT, count),
        Join("page-owner-table", String()),
        Output("owner_news", String()),
        Persist(PAGE),
        Visitor("reset", reset),
    )


def run(config: ClientConfig) -> None:
    """Both processors, in threads of one process, until Ctrl-C."""
    with TopicManager(config) as topics:
        for stream in ("page_owner", "page_view", "owner_news"):
            topics.ensure_stream(stream)
        topics.ensure_table("page-owner-table")
    with tempfile.TemporaryDirectory() as state:  # tables come back from Kafka; name a directory to keep them here too
        options = ProcessorOptions(state_dir=Path(state))
        processors = [Processor(config, graph, options) for graph in (owners(), views())]
        threads = [threading.Thread(target=processor.run) for processor in processors]
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        for thread in threads:
            thread.start()
        if all(processor.wait_for_ready(60) for processor in processors):
            print("counting", flush=True)
            while not stopped.wait(0.2) and not any(processor.error for processor in processors):
                pass
        for processor in processors:
            processor.stop()
        for thread in threads:
            thread.join()


def emit(config: ClientConfig, command: str, arguments: list[str]) -> None:
    """`own URL OWNER` or `view URL...`."""
    if command == "own":
        owning = Emitter(config, "page_owner", String())
        owning.emit_sync(arguments[0], arguments[1])
        owning.finish()
        return
    viewing = Emitter(config, "page_view", VISIT)
    for url in arguments:
        viewing.emit(url, Visit("somebody"))
    viewing.finish()


def top(config: ClientConfig, most: int = 10) -> None:
    """The most viewed pages."""
    view = View(config, "page-views-table", PAGE)
    view.start()
    view.wait_running(30)
    pages = sorted(view.iterator(), key=lambda row: -row[1].views)
    for url, page in pages[:most]:
        print(f"{page.views:6}  {url}  {page.owner or '-'}")
    view.stop()


def main() -> None:
    """The command line above."""
    config = ClientConfig(os.environ.get("GOKAMSG_BROKERS", "localhost:9092"))
    command, *arguments = sys.argv[1:] or ["help"]
    if command == "run":
        run(config)
    elif command in ("own", "view") and arguments:
        emit(config, command, arguments)
    elif command == "top":
        top(config)
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
