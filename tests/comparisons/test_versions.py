"""The table of engines is what their versions do, each in an environment of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import SERVERS
from tests.support.environments import Environments
from tests.support.servers.metered import StartServer

from .versions import VERSIONS, Place, line, probe

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOO_OLD = "5.5.4"


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    """A gigabyte or three each: they are not kept."""
    folder = tmp_path_factory.mktemp("environments")
    yield Environments(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("engine", "version"),
    [(engine, version) for engine, versions in VERSIONS.items() for version in versions],
)
def test_the_table_says_what_is_metered_how(
    engine: str,
    version: str,
    environments: Environments,
    tiny_model: Path,
    stub_directory: Path,
    start_server: StartServer,
) -> None:
    """``python -m tests.comparisons.versions`` mends a difference."""
    place = Place(tiny_model, stub_directory, start_server)
    found = probe(engine, version, environments.of(engine, version), place)
    begin = line([engine, version]).removesuffix("|")
    rows = [row for row in SERVERS.read_text("utf-8").splitlines() if row.startswith(begin)]
    assert rows == [line(row) for row in found]


def test_a_transformers_that_is_too_old_is_named(environments: Environments) -> None:
    """By `check`, and by a server whose settings are strict: one line, and no start."""
    environment = environments.of("transformers", TOO_OLD)
    strict = {"LLM_CARBON_METER_POWER": "modelled", "LLM_CARBON_METER_STRICT": "1"}
    for verb in (["check"], ["serve-transformers", "MODEL"]):
        done = subprocess.run(
            [environment.python, "-m", "llm_carbon_meter.cli", *verb],
            env={**os.environ, **environment.variables, **strict},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "FutureRequestState.query_length" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
