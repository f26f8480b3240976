"""The layers and homes that the design names, read from the source itself.

Checked: who may import whom, each dependency's one home, no import cycle, sizes of files and functions, a docstring on
every module, nothing done at import time, and that the declared dependencies are the imported ones.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gokamsg"

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

# Longer than the limit, and why. An entry that is no longer needed fails.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

# Layer -> the layers (or exact modules) of gokamsg that it may import. "engine!" is the package gokamsg.engine itself,
# without its modules.
ALLOWED: dict[str, set[str]] = {
    "gokamsg": set(),
    "errors": set(),
    "engine": {"engine", "errors"},
    "broker": {"broker", "errors"},
    "config": {"errors"},
    "messaging": {"messaging", "engine!", "errors", "config"},
    "console": {"errors", "config", "engine!"},
    "panel": set(),
    "nursery": {"errors"},
    "supervisor": {"errors", "nursery"},
    "up": {
        "errors",
        "config",
        "engine!",
        "messaging",
        "broker",
        "supervisor",
        "nursery",
        "console",
        "panel",
        "gokamsg",
    },
    "__main__": {"cli"},
}
ALLOWED["commands"] = ALLOWED["up"] | {"up"}
ALLOWED["cli"] = ALLOWED["commands"] | {"commands"}

# Dependency -> the modules that may import it (a name ending in "." is a package and all its modules).
HOMES: dict[str, tuple[str, ...]] = {
    "kafka": ("gokamsg.engine.clients", "gokamsg.engine.clients.", "gokamsg.broker."),
    "sqlitedict": ("gokamsg.engine.sqlite.thread",),
    "sqlite3": ("gokamsg.engine.sqlite.", "gokamsg.broker."),
    "flask": ("gokamsg.messaging.service",),
    "httptools": ("gokamsg.messaging.requests",),
    "typer": ("gokamsg.cli", "gokamsg.commands."),
    "click": ("gokamsg.cli", "gokamsg.commands."),
    "rich": ("gokamsg.console",),
}
# Dependencies with one home, wherever that is.
ONE_HOME = ("prometheus_client", "platformdirs")

ROLES = ("collector", "blocker", "filter", "translator", "detector")


@dataclass(frozen=True)
class Import:
    importer: str
    module: str
    name: str | None
    at_import_time: bool
    line: int

    def __str__(self) -> str:
        what = f"from {self.module} import {self.name}" if self.name else f"import {self.module}"
        return f"{self.importer}:{self.line}: {what}"


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {_module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _above(importer: str, level: int) -> str:
    """The package that a relative import of `level` dots starts from; empty for an absolute one."""
    if level == 0:
        return ""
    is_package = (ROOT / importer.replace(".", "/") / "__init__.py").exists()
    parts = importer.split(".")
    return ".".join(parts[: len(parts) - level + is_package])


def _walk(importer: str, node: ast.AST, at_import_time: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(importer, alias.name, None, at_import_time, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            source = ".".join(filter(None, (_above(importer, child.level), child.module)))
            for alias in child.names:
                yield Import(importer, source, alias.name, at_import_time, child.lineno)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            yield from _walk(importer, ast.Module(body=child.body, type_ignores=[]), False)
            yield from _walk(importer, ast.Module(body=child.orelse, type_ignores=[]), at_import_time)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(importer, child, at_import_time and not inside)


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, tree in modules().items() for found in _walk(name, tree, True))


def _target(found: Import) -> str | None:
    """The module of gokamsg that an import statement reaches, or None for anybody else's."""
    if found.module != "gokamsg" and not found.module.startswith("gokamsg."):
        return None
    submodule = f"{found.module}.{found.name}"
    return submodule if submodule in modules() else found.module


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "gokamsg"


def _may(found: Import, target: str) -> bool:
    own, other = _layer(found.importer), _layer(target)
    if own == other:
        return True
    allowed = ALLOWED.get(own, set())
    return other in allowed or (f"{other}!" in allowed and target == f"gokamsg.{other}")


def test_every_module_belongs_to_a_layer() -> None:
    assert {_layer(name) for name in modules()} <= set(ALLOWED)


def test_imports_follow_the_layers() -> None:
    wrong = [str(found) for found in imports() if (target := _target(found)) and not _may(found, target)]
    assert wrong == []


def test_nothing_imports_the_command_line() -> None:
    outside = {"cli", "commands", "__main__"}
    wrong = [
        str(found)
        for found in imports()
        if (target := _target(found)) and _layer(target) in outside and _layer(found.importer) not in outside
    ]
    assert wrong == []


def test_each_dependency_has_its_home() -> None:
    wrong = []
    for found in imports():
        top = found.module.split(".")[0]
        homes = HOMES.get(top)
        if homes and not any(
            found.importer == home or (home.endswith(".") and found.importer.startswith(home)) for home in homes
        ):
            wrong.append(str(found))
        in_broker = found.importer.startswith("gokamsg.broker")
        if top == "kafka" and in_broker and not f"{found.module}.{found.name or ''}".startswith("kafka.protocol."):
            wrong.append(f"{found} (the broker uses kafka.protocol only)")
    assert wrong == []


@pytest.mark.parametrize("dependency", ONE_HOME)
def test_other_dependencies_have_one_home(dependency: str) -> None:
    assert len({found.importer for found in imports() if found.module.split(".")[0] == dependency}) <= 1


def test_there_is_no_import_cycle() -> None:
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        target = _target(found)
        if target and found.at_import_time and target != found.importer:
            edges[found.importer].add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_api_modules_are_reached_only_through_the_registry() -> None:
    wrong = [
        str(found) for found in imports() if (target := _target(found)) and target.startswith("gokamsg.broker.api.")
    ]
    assert wrong == []


def test_a_role_takes_names_and_codecs_of_another_role_and_never_its_callback() -> None:
    roles = {f"gokamsg.messaging.{role}" for role in ROLES}
    wrong = []
    for found in imports():
        target = _target(found)
        if found.importer in roles and target in roles and target != found.importer:
            functions = {node.name for node in modules()[target].body if isinstance(node, ast.FunctionDef)}
            if found.name is None or found.name in functions or f"{found.module}.{found.name}" == target:
                wrong.append(str(found))
    assert wrong == []


def test_files_stay_small() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    long = {path: count for path, count in lines.items() if count > MAX_FILE_LINES}
    assert {path: count for path, count in long.items() if path not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(long), "LONG_FILES names a file that is short now"


def test_functions_stay_short() -> None:
    long = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    long[f"{module}.{node.name}"] = count
    assert {name: count for name, count in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(long), "LONG_FUNCTIONS names a function that is short now"


def test_every_module_says_what_it_promises() -> None:
    assert [name for name, tree in modules().items() if not ast.get_docstring(tree)] == []


def test_no_todo_is_left_in_the_source() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    assert [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if marks.search(line)
    ] == []


def test_declared_dependencies_are_the_imported_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=~! ;]", line, maxsplit=1)[0].lower() for line in project["dependencies"]}
    distribution = {"kafka": "kafka-python"}
    # These come with kafka-python's extras lz4, snappy and zstd; click comes with typer.
    with_another = {"lz4", "snappy", "cramjam", "zstandard", "click"}
    imported = {top for found in imports() if (top := found.module.split(".")[0]) not in sys.stdlib_module_names}
    named = {distribution.get(top, top) for top in imported - with_another - {"gokamsg"}}
    assert named - declared == set(), "imported and not declared"
    assert declared - named == set(), "declared and not imported"


_IMPORT_ALL = """
import importlib, json, sys
names = json.loads(sys.stdin.readline())
"""

_LIST_OTHERS = (
    _IMPORT_ALL
    + """
for name in names:
    importlib.import_module(name)
print(json.dumps([name for name in sys.modules if name.split(".")[0] != "gokamsg" and name != "__main__"]))
"""
)

_WATCHED = (
    _IMPORT_ALL
    + """
import os, traceback
for other in json.loads(sys.stdin.readline()):
    try:
        importlib.import_module(other)
    except ImportError:
        pass  # made by another module under a name of its own
seen = []
current = ""

def note(what):
    where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "gokamsg" in f.filename]
    seen.append(f"{current}: {what} ({where[-1] if where else 'elsewhere'})")

def audit(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.bind", "_thread.start_new_thread", "subprocess.Popen",
                 "os.fork", "sqlite3.connect", "os.mkdir", "signal.signal"):
        note(event)
    elif event == "open" and not str(args[0]).endswith((".py", ".pyc")):
        note(f"open {args[0]!r}")

class Arguments(list):
    def __getitem__(self, index):
        note("sys.argv")
        return super().__getitem__(index)
    def __iter__(self):
        note("sys.argv")
        return super().__iter__()

getitem = os._Environ.__getitem__
def environment(self, key):
    note(f"environment {key!r}")
    return getitem(self, key)
os._Environ.__getitem__ = environment
sys.argv = Arguments(sys.argv)
sys.addaudithook(audit)
for current in names:
    importlib.import_module(current)
result, current = list(seen), ""
print(json.dumps(result))
"""
)


def _python(script: str, *lines: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_importing_a_module_does_nothing_else() -> None:
    """No socket, thread, process, file or signal handler; no look at environment or arguments."""
    names = [name for name in modules() if name != "gokamsg.__main__"]
    others = _python(_LIST_OTHERS, names)
    assert _python(_WATCHED, names, others) == []
