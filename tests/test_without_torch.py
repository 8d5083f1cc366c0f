"""What works without torch and the rest of the extra `train`, and what says that it cannot."""

import csv
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llm_carbon_meter import cli
from llm_carbon_meter.testing.servers import free_port
from tests.support.environments import Environment, build_wheel, make_plain
from tests.support.interpreters import run_python, without
from tests.support.servers.proxied import CHAT, USAGE, running
from tests.support.waiting import eventually

NO_TORCH = without("torch", "torch_geometric", "sklearn", "matplotlib", "vllm", "transformers")
BARE = NO_TORCH + without("starlette", "uvicorn", "duckdb")
"""As with the package's own dependencies and no extra."""
MODULES = """
import importlib, pkgutil
import llm_carbon_meter
for module in pkgutil.walk_packages(llm_carbon_meter.__path__, "llm_carbon_meter."):
    if not module.name.startswith({besides}):
        importlib.import_module(module.name)
        print(module.name)
"""
LEARNING = (
    *("training.fit.", "training.study.", "campaign.focus"),
    *("campaign.torch_work", "campaign.measuring", "campaign.sensor"),
)
"""Where torch is imported."""
ESTIMATE = (
    *("estimate", "--model", "Llama-3.1-8B", "--concurrency", "8"),
    *("--prompt-tokens", "1000", "--output-tokens", "500", "--compare"),
)
ROWS = """\
model_config,gpu,num_gpus,dtype,engine,engine_version,concurrency,prompt_tokens,output_tokens
Llama-3.1-8B,H100,1,bfloat16,vllm,,4,1000,500
Mixtral-8x7B,A100,2,,vllm,0.11.1,16,300,200
gpt-oss-20b,L40S,1,,transformers,,1,50,900
"""
RECORD = {
    "model": "Llama",
    "source": "measured",
    "quality": "counter",
    "prompt_tokens": 100,
    "output_tokens": 400,
    "energy_joules": 3600.0,
    "decode_joules": 3600.0,
    "features": {"arrived_unix_s": 1.77e9},
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A request log of 1 Wh."""
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(RECORD) + "\n", "utf-8")
    return path


def verb(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb in a fresh interpreter, after some code."""
    code = f"{before}\nfrom llm_carbon_meter import cli\nsys.exit(cli.main({list(arguments)}))"
    return run_python(code, LLM_CARBON_METER_POWER="modelled")


def test_only_what_learns_imports_torch() -> None:
    """Every other module of the package is imported without it."""
    besides = tuple(f"llm_carbon_meter.{place}" for place in LEARNING)
    done = run_python(NO_TORCH + MODULES.format(besides=besides))
    assert (done.returncode, done.stderr) == (0, "")
    served = {"servers.vllm.hooks", "servers.sidecar.serve", "servers.transformers.generate"}
    assert {f"llm_carbon_meter.{name}" for name in served} <= set(done.stdout.split())


def test_the_hidden_packages_are_not_to_be_had() -> None:
    """Neither imported nor looked for: the tests here do not pass by mistake."""
    code = "from importlib.util import find_spec\nprint(find_spec('torch'))\nimport torch"
    done = run_python(BARE + code)
    assert done.stdout == "None\n"
    assert "No module named 'torch'" in done.stderr


def test_the_package_alone_checks_estimates_and_replays(log: Path) -> None:
    """No extra is needed for it; without an engine here, `check` says so and ends with 1."""
    checked = verb(BARE, "check")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert "Nothing would be metered: see vllm." in checked.stdout
    estimated = verb(BARE, *ESTIMATE)
    assert (estimated.returncode, estimated.stderr) == (0, "")
    assert estimated.stdout == verb("import sys", *ESTIMATE).stdout
    replayed = verb(BARE, "replay", str(log))
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert "measured" in replayed.stdout


@pytest.mark.parametrize(
    ("before", "arguments", "missing"),
    [
        (BARE, ("report", "{log}"), "duckdb"),
        (BARE, ("export", "{log}", "--parquet", "{log}-out"), "duckdb"),
        (NO_TORCH, ("report", "{log}", "--html", "{log}.html"), "matplotlib"),
    ],
    ids=["report", "export", "page"],
)
def test_reports_without_their_extra_say_so(
    log: Path, before: str, arguments: Sequence[str], missing: str
) -> None:
    """One line that names what is missing and the extra that brings it."""
    done = verb(before, *(word.format(log=log) for word in arguments))
    assert done.returncode == 1
    (text,) = done.stderr.splitlines()
    assert missing in text
    assert "pip install 'llm-carbon-meter[report]'" in text


CAMPAIGN = ("campaign", "--engine", "transformers", "--minutes", "0", "--out", "/nowhere/x.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--output", "/nowhere"), "train needs torch, torch_geometric, not installed"),
        (("evaluate", "--output", "/nowhere"), "evaluate needs torch, torch_geometric, sklearn, "),
        (("demo", "--out", "/nowhere"), "demo needs torch, matplotlib, not installed here"),
        (CAMPAIGN, "campaign needs torch, not installed here"),
    ],
    ids=["train", "evaluate", "demo", "campaign"],
)
def test_what_needs_torch_says_so(arguments: Sequence[str], words: str) -> None:
    """One line: what was tried, what is missing, and which extra brings it."""
    done = verb(NO_TORCH, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    extra = "train" if arguments[0] in ("train", "evaluate") else arguments[0]
    assert done.stderr.endswith(f": pip install 'llm-carbon-meter[{extra}]'\n")
    assert done.stderr.count("\n") == 1


def test_focused_sampling_needs_what_learns() -> None:
    """Said before anything is measured."""
    done = verb(without("torch_geometric"), *CAMPAIGN, "--focused")
    assert "campaign --focused needs torch_geometric, not installed here" in done.stderr
    assert "pip install 'llm-carbon-meter[train]'" in done.stderr


# An environment that never had torch


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with what it requires, and the extras `sidecar` and `report`."""
    folder = tmp_path_factory.mktemp("plain")
    return make_plain(folder / "venv", build_wheel(folder), "sidecar", "report")


def run(plain: Environment, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of the environment's Python."""
    return subprocess.run(
        [plain.python, *command],
        env={**os.environ, **plain.variables, "LLM_CARBON_METER_POWER": "modelled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def plain_verb(plain: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb of the installed wheel."""
    return run(plain, "-m", "llm_carbon_meter.cli", *arguments)


@pytest.mark.slow
def test_there_is_no_torch_there(plain: Environment) -> None:
    """Nor does the package come from this tree."""
    assert "No module named 'torch'" in run(plain, "-c", "import torch").stderr
    place = run(plain, "-c", "import llm_carbon_meter; print(llm_carbon_meter.__file__)").stdout
    assert "site-packages" in place


@pytest.mark.slow
def test_check_there_finds_no_engine_and_no_error(plain: Environment) -> None:
    """Exit code 1, since nothing would be metered."""
    done = plain_verb(plain, "check")
    assert (done.returncode, done.stderr) == (1, "")
    assert "modelled, not measured" in done.stdout
    assert "Nothing would be metered: see vllm." in done.stdout


@pytest.mark.slow
def test_estimates_there_are_those_of_here(
    plain: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request on every GPU, and a table of others."""
    done = plain_verb(plain, *ESTIMATE)
    assert (done.returncode, done.stderr) == (0, "")
    assert cli.main(ESTIMATE) == 0
    assert done.stdout == capsys.readouterr().out
    source = tmp_path / "rows.csv"
    source.write_text(ROWS, "utf-8")
    table = ("estimate", "--input", str(source), "--output")
    assert plain_verb(plain, *table, str(tmp_path / "there.csv")).returncode == 0
    assert cli.main([*table, str(tmp_path / "here.csv")]) == 0
    there, here = (energies(tmp_path / f"{name}.csv") for name in ("there", "here"))
    assert len(there) == 3
    assert there == pytest.approx(here, rel=1e-8)


def energies(path: Path) -> list[float]:
    """The column of a table that was answered without an error."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["error"] for row in rows)
    return [float(row["energy_wh"]) for row in rows]


@pytest.mark.slow
def test_reports_there_have_their_table_and_their_page(
    plain: Environment, tmp_path: Path, log: Path
) -> None:
    """Plots too: the extra is installed."""
    page = tmp_path / "page.html"
    done = plain_verb(plain, "report", str(log), "--html", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    starts = [line.split()[:4] for line in done.stdout.splitlines()]
    assert ["model", "source", "prefill_wh", "decode_wh"] in starts
    assert ["Llama", "measured", "0", "1"] in starts
    assert "data:image/png" in page.read_text("utf-8")


@pytest.fixture
def upstream() -> Iterator[str]:
    """A server that answers chats and has no meter; its URL."""

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "toy"}]})

    async def chat(_: Request) -> Response:
        message = {"role": "assistant", "content": "Hello."}
        return JSONResponse(
            {"id": "chatcmpl-1", "choices": [{"index": 0, "message": message}], "usage": USAGE}
        )

    routes = [Route("/v1/models", models), Route(CHAT, chat, methods=["POST"])]
    with running(Starlette(routes=routes)) as url:
        yield url


@pytest.mark.slow
def test_a_sidecar_there_meters_a_chat(plain: Environment, upstream: str, tmp_path: Path) -> None:
    """The answer has the estimate and the modelled energy in its headers; it ends in order."""
    place = f"127.0.0.1:{free_port()}"
    options = ("--upstream", upstream, "--listen", place, "--model", "Llama-3.1-8B")
    settings = {"LLM_CARBON_METER_POWER": "modelled", "LLM_CARBON_METER_PROVISIONAL_WAIT_S": "10"}
    with (tmp_path / "log").open("w+") as output:
        process = subprocess.Popen(
            [plain.python, "-m", "llm_carbon_meter.cli", "sidecar", *options],
            env={**os.environ, **plain.variables, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(lambda: "goes to" in (tmp_path / "log").read_text(), "the sidecar")
            body = {"model": "toy", "messages": [{"role": "user", "content": "Hello"}]}
            answer = httpx.post(f"http://{place}{CHAT}", json=body, timeout=30, trust_env=False)
        finally:
            process.terminate()
            assert process.wait(30) == 0
    assert answer.json()["usage"] == USAGE
    assert float(answer.headers["LLM-Carbon-Estimated-Wh"]) > 0
    assert float(answer.headers["LLM-Carbon-Modelled-Wh"]) > 0
    assert answer.headers["LLM-Carbon-Quality"] == "modelled"
