"""The command line: assembles the commands, and turns wrong usage into one line.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 ended by Ctrl-C. No traceback reaches a user without --debug.
"""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from gokamsg import __version__, console
from gokamsg.commands.registration import INTERRUPTED, app

HOMES = {
    "up": "up",
    "broker": "broker",
    "serve": "serve",
    "process": "process",
    "loadgen": "load",
    "send": "messages",
    "feed": "feed",
    "block": "messages",
    "unblock": "messages",
    "translate": "messages",
    "status": "status",
    "verify": "verify",
    "quarantine": "quarantine",
    "topics": "topics",
}
"""The first word of each command, in the order of the help: the module of gokamsg.commands that registers it."""

# Typer carries a Click of its own since 0.16; this finds the class wherever it lives.
UsageFailure: Any = typer.BadParameter.__bases__[0]

CLICKS_WORDS = (
    (r"Invalid value for '(-\S+)': (.+) is not a valid int(eger)?\.?$", r"\1 is \2; it must be a whole number."),
    (r"Invalid value for '(-\S+)': (.+) is not a valid float\.?$", r"\1 is \2; it must be a number."),
    (r"Got unexpected extra arguments? ?(\(s\))? \((.+)\)\.?$", r"there is no place for '\2'."),
    (r"No such option: (\S+) \(Possible options: (.+)\)\.?$", r"there is no option \1. Did you mean \2?"),
    (r"No such option: (\S+)", r"there is no option \1"),
    (r"No such command ('[^']*')", r"there is no command \1"),
    (r"Missing argument ('[^']*')", r"\1 is missing"),
    (r"Option ('[^']*') requires an argument", r"\1 needs a value"),
)


def show_version(wanted: bool) -> None:
    if wanted:
        console.out(f"gokamsg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Goka in Python: emitters, processors and views on Kafka, and the messaging service built from them."""


def register(words: Sequence[str]) -> None:
    """Imports the command that the words of a command line name; all of them, where it needs to know what there is."""
    homes = [HOMES[word] for word in words[:1] if word in HOMES] or HOMES.values()
    for home in homes:
        import_module(f"gokamsg.commands.{home}")
    order = list(HOMES)
    app.registered_commands.sort(key=lambda command: order.index(str(command.name)))


def usage_error(failure: Any) -> int:
    """One line about wrong usage, and where help is."""
    context = failure.ctx
    if type(failure).__name__ == "NoArgsIsHelpError":
        console.out(context.get_help())
        return 0
    path = context.command_path if context is not None else "gokamsg"
    console.error(f"{in_our_words(failure.format_message())}\nSee '{path} --help'.")
    return 2


def in_our_words(text: str) -> str:
    """Click's sentence about wrong usage as the other errors are written."""
    for pattern, words in CLICKS_WORDS:
        text = re.sub(pattern, words, text)
    return text[:1].lower() + text[1:]


def main() -> None:
    """The installed command `gokamsg`."""
    console.prepare_streams()
    register(sys.argv[1:])
    try:
        code = typer.main.get_command(app).main(prog_name="gokamsg", standalone_mode=False)
    except UsageFailure as failure:
        code = usage_error(failure)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed and stored; taking the interpreter apart would take a tenth of a second more.
    os._exit(code or 0)
