"""Kafka Streams as a contender of benchmarks/throughput.py: its jars, and benchmarks/streams/Role.java compiled.

The jars are fetched once with Maven, and the class is compiled once for each change of its source, both into the user's
cache directory. Without Java's compiler and Maven there is no Kafka Streams, and the reason is told.
"""

import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from tests.kafka_server import KAFKA_VERSION
from tests.system import fold

SOURCE = Path(__file__).parent / "streams" / "Role.java"
TABLE = "collector-feeds-changelog"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>streams-libs</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka-streams</artifactId><version>{KAFKA_VERSION}</version>
  </dependency></dependencies>
</project>
"""


class StreamsUnavailableError(Exception):
    """Kafka Streams cannot be had here; str() is the reason."""


@functools.cache
def class_path() -> str:
    """What `java -cp` takes for the class Role. Raises StreamsUnavailableError."""
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            raise StreamsUnavailableError(f"Kafka Streams needs {tool} on PATH")
    cache = Path(platformdirs.user_cache_dir("gokamsg-tests"))
    cache.mkdir(parents=True, exist_ok=True)
    libs = cache / f"kafka-streams-{KAFKA_VERSION}"
    compiled = cache / f"streams-role-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if not libs.is_dir():
        _make(libs, _fetch)
    if not compiled.is_dir():
        _make(compiled, lambda path: _run("javac", "-Xlint:-removal", "-cp", f"{libs}/*", "-d", str(path), str(SOURCE)))
    return f"{compiled}:{libs}/*"


def _make(directory: Path, fill: Callable[[Path], None]) -> None:
    """Complete by construction: it is renamed into place."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        draft = Path(scratch, "draft")
        draft.mkdir()
        fill(draft)
        draft.rename(directory)


def _fetch(libs: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pom = Path(scratch, "pom.xml")
        pom.write_text(_POM)
        _run("mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={libs}")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise StreamsUnavailableError(f"{command[0]} failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def argv(address: str, role: str, group: str, state: Path) -> list[str]:
    return ["java", "-Xmx512m", "-cp", class_path(), "Role", address, role, group, str(state)]


def check_collector(address: str, expected: dict[str, Any]) -> list[str]:
    """Every user's row holds the latest five messages."""
    return fold.difference(expected, fold.table(address, TABLE))
