"""What is shown as code runs: the README's library examples from empty files, and the programs in examples/."""

import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

import gokamsg.engine
from gokamsg.engine import Tester
from tests.helpers import Process, Processes, eventually, gokamsg_env
from tests.kafka_server import KafkaCluster

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NAMED_BLOCK = re.compile(r"^```python\n(# (\w+\.py)\n.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def files_of_readme() -> dict[str, str]:
    """The README's Python blocks that begin with a file's name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {name: block for block, name in NAMED_BLOCK.findall(text)}


def ran(*argv: str, cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{argv}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_word_count_of_the_readme_counts(kafka_cluster: KafkaCluster, tmp_path: Path) -> None:
    source = files_of_readme()["word_count.py"]
    assert len(source.splitlines()) <= 45
    (tmp_path / "word_count.py").write_text(source.replace("localhost:9092", kafka_cluster.address), encoding="utf-8")
    assert ran("word_count.py", cwd=tmp_path, env=gokamsg_env()) == "be 2\nnot 1\nor 1\nto 2\n"


def test_the_tester_example_of_the_readme_passes_and_can_fail(tmp_path: Path) -> None:
    files = files_of_readme()
    for name in ("word_count.py", "test_word_count.py"):
        (tmp_path / name).write_text(files[name], encoding="utf-8")
    assert " passed" in ran("-m", "pytest", "-q", "test_word_count.py", cwd=tmp_path, env=gokamsg_env())
    broken = files["word_count.py"].replace("+ one", "+ one + one")
    assert broken != files["word_count.py"]
    (tmp_path / "word_count.py").write_text(broken, encoding="utf-8")
    with pytest.raises(AssertionError, match="2 failed"):
        ran("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_word_count.py", cwd=tmp_path, env=gokamsg_env())


def test_the_readme_names_every_public_name_of_the_engine() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## As a library", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", section))
    assert set(gokamsg.engine.__all__) - named == set()


def test_every_public_name_of_the_engine_says_what_it_is() -> None:
    contracts = (gokamsg.engine.Storage, gokamsg.engine.Codec)  # said there, once for all that keep them
    silent = []
    for name in gokamsg.engine.__all__:
        thing = getattr(gokamsg.engine, name)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and thing.__module__ != "builtins"):
            members = vars(thing).items() if inspect.isclass(thing) else ()
            public = {member: value for member, value in members if not member.startswith("_")}
            for member, value in {"": thing, **public}.items():
                is_said = any(getattr(getattr(contract, member, None), "__doc__", None) for contract in contracts)
                is_code = callable(value) or isinstance(value, property)
                if is_code and not (value.__doc__ or "").strip() and not is_said:
                    silent.append(f"{name}.{member}")
    assert silent == []


def page_views() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page_views", EXAMPLES / "page_views.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_views_are_counted_with_their_owners_through_crashes(seed: int) -> None:
    """Invariants: each view is counted once; news go to the owner that the page had, every tenth view."""
    example = page_views()
    with Tester(seed=seed, crash_rate=0.01) as tester:
        owners, views = tester.processor(example.owners()), tester.processor(example.views())
        news = tester.new_queue_tracker("owner_news")
        tester.consume("page_owner", "/pricing", "Dana")
        visits = tester.emitter("page_view", example.VISIT)
        for number in range(25):
            visits.emit("/pricing", example.Visit(f"reader {number}"))
            visits.emit(f"/page/{number}", example.Visit("somebody"))
        tester.catchup()
        assert tester.table_value("page-views-table", "/pricing") == example.Page(25, "Dana")
        assert len(tester.get_table_keys("page-views-table")) == 26
        assert news.rest() == [("Dana", "/pricing was viewed 10 times"), ("Dana", "/pricing was viewed 20 times")]
        tester.consume("page_owner", "/pricing", "")
        assert tester.get_table_keys("page-owner-table") == []
        assert owners.error is views.error is None


def test_a_visit_resets_the_page_views() -> None:
    example = page_views()
    with Tester() as tester:
        tester.processor(example.owners())
        views = tester.processor(example.views())
        for url in ("/a", "/a", "/b"):
            tester.consume("page_view", url, example.Visit("somebody"))
        assert views.visit_all("reset", 2) == 2
        assert tester.get_table_keys("page-views-table") == ["/a"]
        assert tester.table_value("page-views-table", "/a") == example.Page(0, "")


@pytest.mark.any_broker("apache")
def test_the_page_view_example_runs(kafka_cluster: KafkaCluster, run: Processes, tmp_path: Path) -> None:
    env = gokamsg_env() | {"GOKAMSG_BROKERS": kafka_cluster.address}
    script = str(EXAMPLES / "page_views.py")
    counting = run.add(Process([sys.executable, script, "run"], run.log_dir, name="views", env=env, cwd=tmp_path))
    counting.wait_line("^counting$", timeout_s=60)
    ran(script, "own", "/pricing", "Dana", cwd=tmp_path, env=env)
    ran(script, "view", "/about", cwd=tmp_path, env=env)

    def shown() -> str:
        ran(script, "view", "/pricing", cwd=tmp_path, env=env)
        return ran(script, "top", cwd=tmp_path, env=env)

    # A join is not ordered with its input: the owner is there with one of the next views.
    eventually(
        "the most viewed page has its owner", lambda: re.match(r" +\d+  /pricing  Dana\n", shown()), timeout_s=60
    )
    assert re.search(r"^ +1  /about  -$", shown(), flags=re.MULTILINE)
    counting.signal(signal.SIGINT)
    assert counting.wait() == 0
    assert os.listdir(tmp_path / "logs") != []
