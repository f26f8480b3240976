"""Every benchmark still runs: with --quick it gets through, its checks of the outputs included, and prints a table."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import gokamsg_env
from tests.kafka_server import LIBS_VARIABLE

ROOT = Path(__file__).parent.parent
QUICK = {
    "throughput": ["--role", "all"],
    "restore": [],
    "restart": [],
    "latency": [],
    "http": [],
    "broker": [],
    "soak": [],
    "growth": [],
    "quarantine": [],
    "footprint": [],
}
# What others import, or run as a contender.
PARTS = {
    "measure",
    "fill",
    "roles",
    "growth_role",
    "broker_clients",
    "naive_filter",
    "pipeline",
    "confluent_filter",
    "quix_role",
    "kafka_streams",
}


def test_every_benchmark_is_run_here() -> None:
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__"}
    assert there == {*QUICK, *PARTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_benchmark_runs_with_quick(name: str, libs: Path, tmp_path: Path) -> None:
    if name == "soak":
        pytest.importorskip("confluent_kafka")
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", *QUICK[name]],
        cwd=ROOT,
        env=gokamsg_env({LIBS_VARIABLE: str(libs), "TMPDIR": str(tmp_path)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "----" in done.stdout, done.stdout
