"""What is in the wheel, what importing costs, and what installing and removing it does."""

import contextlib
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_carbon_meter import __version__
from llm_carbon_meter.testing.servers import MODEL_NAME, entry_point
from tests.support.environments import build_wheel
from tests.support.interpreters import run_command, run_python

if TYPE_CHECKING:  # the wheel alone is tested without what starting a server needs
    from tests.support.metered import Metered, StartServer


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_types_data_and_entry_points(wheel: Path) -> None:
    """Everything that serving reads is inside, nothing of the tests, and the package's version."""
    names = zipfile.ZipFile(wheel).namelist()
    tables = ("gpus.toml", "models.json", "azure_conversation.json", "azure_code.json")
    others = ("py.typed", "testing/nvml_stub.c", "training/data/manifest.json")
    for name in (*others, *(f"data/{table}" for table in tables)):
        assert f"llm_carbon_meter/{name}" in names
    assert not any(name.startswith("tests/") for name in names)
    assert f"llm_carbon_meter-{__version__}.dist-info/METADATA" in names
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "servers.vllm.plugin:register" in zipfile.ZipFile(wheel).read(points).decode()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Neither vllm nor torch nor NVML: every process of a deployment imports it."""
    code = "import llm_carbon_meter, sys; print(*sys.modules)"
    loaded = set(run_python(code).stdout.split())
    assert "llm_carbon_meter" in loaded
    assert not loaded & {"vllm", "torch", "torch_geometric", "pynvml", "zmq", "transformers"}


def test_the_command_line_names_its_verbs_and_its_errors() -> None:
    """A wrong model is one line on stderr and exit code 1."""
    tokens = ("--prompt-tokens", "1", "--output-tokens", "1")
    done = run_command("estimate", "--model", "No-Such", *tokens)
    assert done.returncode == 1
    assert "No-Such" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with everything that is installed here, but not this package."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "llm_carbon_meter" not in entry.name and entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def _serve(
    start_server: "StartServer", python: Path
) -> "contextlib.AbstractContextManager[Metered]":
    power = {"LLM_CARBON_METER_POWER": "auto"}
    return start_server(program=(str(python), "-m", entry_point()), environment=power)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.engine
@pytest.mark.slow
def test_installing_is_all_it_takes_and_removing_undoes_it(
    wheel: Path, bare_python: Path, start_server: "StartServer"
) -> None:
    """With the wheel a server without flags exports metrics; without it, it runs as before."""
    _pip(bare_python, "install", "--no-deps", "--no-index", str(wheel))
    body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 5, "ignore_eos": True}
    with _serve(start_server, bare_python) as metered:
        assert metered.http("/v1/completions", body)[0] == 200
        assert sum(metered.accounts(source="measured").values()) > 0
    _pip(bare_python, "uninstall", "--yes", "llm-carbon-meter")
    with _serve(start_server, bare_python) as bare:
        status, headers, _ = bare.http("/v1/completions", body)
        assert status == 200
        assert not any("carbon" in name.lower() for name in headers)
        assert not any("carbon" in sample.name for sample in bare.samples())
