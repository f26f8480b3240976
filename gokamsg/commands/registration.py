"""Makes a command line out of functions and the settings table.

    @command("feed", "Show the latest messages of a user.")
    def feed(settings: Settings, user: Annotated[str, argument("USER", "Whose messages.")]) -> None: ...

The function's own parameters are the command's arguments; its options are the settings that name the command in
config.py. Whatever a command raises ends as one line on stderr and an exit code: 1 failed, 2 wrong usage, 130 stopped
by Ctrl-C.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer
import typer.core

from gokamsg import console
from gokamsg.config import ROLE_NAMES, Setting, Settings, settings_of
from gokamsg.errors import BrokerUnavailableError

from .help import HELP, Help

CONTEXT = {"help_option_names": ["-h", "--help"]}
INTERRUPTED = 130
EPILOG = "Every option can be set in the environment as well: --kafka-config as GOKAMSG_KAFKA_CONFIG."

app = typer.Typer(
    name="gokamsg",
    help="Goka in Python: emitters, processors and views on Kafka, and the messaging service built from them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    no_args_is_help=True,
)
PARENTS = {
    name: typer.Typer(name=name, help=text, rich_markup_mode=None, context_settings=CONTEXT, no_args_is_help=True)
    for name, text in (
        ("topics", "Create and describe the topics of the messaging service."),
        ("quarantine", "Look at, mend, retry or drop bad records."),
    )
}
for parent in PARENTS.values():
    app.add_typer(parent)

Action = Callable[..., None]


class PlainCommand(typer.core.TyperCommand):
    """A command whose help names its arguments as the metavars do, without Typer's braces and types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        named = [(str(one.metavar), one.help) for one in self.params if isinstance(one, typer.core.TyperArgument)]
        if named:
            with formatter.section("Arguments"):
                formatter.write_dl(named)
        options = [one.get_help_record(ctx) for one in self.get_params(ctx) if one.param_type_name == "option"]
        with formatter.section("Options"):
            formatter.write_dl([record for record in options if record is not None])


def argument(metavar: str, text: str) -> Any:
    """An argument of a command, for Annotated."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


def command(path: str, summary: str) -> Callable[[Action], Action]:
    """Registers a function as the command `path` ("feed", "topics create"); the rest of its help is in help.py."""
    text = HELP.get(path, Help())
    examples = "\n".join(("\b", "Examples:", *(f"  {line}" for line in text.examples))) if text.examples else ""

    def register(action: Action) -> Action:
        hints = get_type_hints(action, include_extras=True)
        own = [parameter for name, parameter in inspect.signature(action).parameters.items() if name != "settings"]
        parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        parameters += [option(row, path) for row in settings_of(path)]

        def run(**values: Any) -> None:
            arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
            perform(path, action, arguments, values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        *above, name = path.split()
        (PARENTS[above[0]] if above else app).command(
            name,
            cls=PlainCommand,
            help=f"{summary}\n\n{text.more}".strip(),
            short_help=text.short or summary,
            epilog=f"{examples}\n\n{EPILOG}",
            context_settings=CONTEXT,
        )(run)
        return action

    return register


def option(row: Setting, path: str) -> inspect.Parameter:
    """A row of the settings table as a parameter that Typer makes an option of."""
    kind, default = row.kind, row.default
    if kind == tuple[str, ...]:
        kind, default = list[str], list(row.default)
    flags = [row.flag_of(path), row.short] if row.short else [row.flag_of(path)]
    help_text, default_text = row.help_of(path)
    if row.kind is not bool and default_text:
        help_text += f" [default: {default_text}]"
    words = row.choices or ((*ROLE_NAMES, "all") if row.name == "role" else ())
    declared = typer.Option(
        *flags,
        envvar=row.environment,
        help=help_text,
        metavar=metavar(row),
        show_default=False,
        show_envvar=False,
        autocompletion=(lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None,
    )
    return inspect.Parameter(
        row.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def metavar(row: Setting) -> str | None:
    """What stands for the option's value in its help."""
    if row.metavar is not None or row.kind is bool:
        return row.metavar
    return "|".join(row.choices) or {int: "N", float: "X"}.get(
        get_args(row.kind)[0] if get_args(row.kind) else row.kind
    )


def perform(path: str, action: Action, arguments: dict[str, Any], values: dict[str, Any]) -> None:
    """Runs the function of the command `path` with checked settings; ends as an exit code."""
    debug = bool(values.get("debug"))
    try:
        if "role" in values:
            values["role"] = tuple(values["role"] or ())
        settings = Settings.of(path, values)
        console.set_up_logging(debug=debug)
        action(settings, **arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except typer.Exit:
        raise
    except Exception as failure:
        if isinstance(failure, BrokerUnavailableError) and _nobody_listens(str(failure)):
            failure = BrokerUnavailableError(f"{failure}.\n{START_A_BROKER}").with_traceback(failure.__traceback__)
        raise typer.Exit(console.report(failure, debug=debug)) from None


def _nobody_listens(text: str) -> bool:
    return "answers at" in text and "something listens" not in text


START_A_BROKER = (
    "Start everything with 'gokamsg up', a broker alone with 'gokamsg broker', Apache Kafka with 'docker compose up',"
    " or name one with --brokers."
)
