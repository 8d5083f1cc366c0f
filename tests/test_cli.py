"""The command line as a whole: what it loads, and how it ends when nobody reads on."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_carbon_meter import cli
from tests.support.interpreters import run_python

HEAVY = {"torch", "torch_geometric", "sklearn", "matplotlib", "transformers", "vllm", "scipy"}
LOADED = """
import contextlib, sys
from llm_carbon_meter import cli
with contextlib.suppress(SystemExit):
    {call}
print(*sys.modules, file=sys.stderr)
"""
CONFIG = "config addresses private_folder"
"""What settings need."""
ROOMS = {
    "demo": f"{CONFIG} data demo exporters extras physics power service testing units",
    "campaign": f"campaign {CONFIG} progress exporters extras physics power training units",
    "check": f"carbon check {CONFIG} data exporters extras faults formats frontend ledger "
    "physics power predictor servers service units",
    "serve-transformers": f"carbon {CONFIG} data exporters extras faults formats frontend physics "
    "power predictor servers service units",
    "sidecar": "servers",
    "estimate": f"carbon {CONFIG} estimate exporters faults physics predictor progress service "
    "units",
    "plan": f"carbon {CONFIG} data estimate exporters faults physics predictor service units",
    "models": "estimate exporters physics",
    "gpus": "estimate exporters physics predictor",
    "replay": f"{CONFIG} exporters extras faults formats frontend report units",
    "report": f"{CONFIG} exporters extras faults formats frontend report units",
    "export": f"{CONFIG} exporters extras faults formats frontend report units",
    "verify": f"{CONFIG} exporters extras faults formats verify",
    "train": f"{CONFIG} extras training",
    "evaluate": f"{CONFIG} extras training",
}
"""What the module of each verb may load, its options included."""


def loaded_by(call: str) -> set[str]:
    """All modules after a call of `cli`, in a fresh interpreter."""
    return set(run_python(LOADED.format(call=call)).stderr.split())


def rooms(modules: set[str]) -> set[str]:
    """The parts of this package that are among some modules, `cli` and `records` left out."""
    ours = (module.split(".") for module in modules if module.startswith("llm_carbon_meter."))
    return {parts[1] for parts in ours} - {"cli", "records"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["nothing"]], ids=" ".join)
def test_without_a_verb_nothing_is_loaded(arguments: Sequence[str]) -> None:
    """Help, version and wrong usage take no module of a verb, and nothing from outside."""
    modules = loaded_by(f"cli.main({arguments})")
    assert "llm_carbon_meter.cli" in modules
    assert not rooms(modules)
    assert not modules & {*HEAVY, "numpy", "zmq", "httpx", "prometheus_client", "tqdm"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its line, in the order of the table."""
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    places = [words.index(f" {name} {verb.help}") for name, verb in cli.VERBS.items()]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_loads_its_own_rooms(verb: str) -> None:
    """No other verb's, and nothing heavy before its work begins."""
    modules = loaded_by(f"cli._parser(['{verb}'])")
    assert rooms(modules) == set(ROOMS[verb].split())
    assert not modules & HEAVY


REPORT = {
    "model": "Llama",
    "source": "measured",
    "quality": "counter",
    "prompt_tokens": 100,
    "output_tokens": 400,
    "energy_joules": 3600.0,
    "features": {"arrived_unix_s": 1.77e9},
}


def log_of(folder: Path, requests: int) -> Path:
    """A request log with a request in each of so many hours."""
    lines = [
        json.dumps({**REPORT, "features": {"arrived_unix_s": 1.77e9 + 3600 * hour}})
        for hour in range(requests)
    ]
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_a_report_and_a_replay_load_no_server_and_nothing_heavy(tmp_path: Path) -> None:
    """Also while they work."""
    log = log_of(tmp_path, 2)
    for verb in ("report", "replay"):
        modules = loaded_by(f"cli.main(['{verb}', '{log}'])")
        assert rooms(modules) == set(ROOMS[verb].split())
        assert not modules & {*HEAVY, "starlette", "zmq", "pynvml"}


BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}
"""As in a shell's pipe."""


def piped(arguments: Sequence[str], reader: Sequence[str]) -> tuple[int, str, str]:
    """Exit code and stderr of the verb, and what a program read that its output was piped to."""
    command = [sys.executable, "-m", "llm_carbon_meter.cli", *arguments]
    with subprocess.Popen(
        command, env=BUFFERED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as verb:
        assert verb.stdout is not None
        assert verb.stderr is not None
        read = subprocess.run(
            reader, stdin=verb.stdout, capture_output=True, text=True, check=True
        ).stdout
        verb.stdout.close()
        errors = verb.stderr.read()
    return verb.returncode, errors, read


def test_a_report_into_head_ends_quietly(tmp_path: Path) -> None:
    """More than a pipe holds: the code says that the reader went, and nothing is on stderr."""
    log = log_of(tmp_path, 2000)
    code, errors, read = piped(["report", str(log), "--by", "hour"], ["head", "-n", "1"])
    assert read.startswith("period: whole log")
    assert (code, errors) == (cli.READER_GONE, "")
    assert cli.READER_GONE == 141  # as a shell shows the signal of a broken pipe


TOKENS = ("--prompt-tokens", "100", "--output-tokens", "100")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("estimate", "--model", "Llama-3.1-8B", "--compare", *TOKENS)],
    ids=["help", "estimate"],
)
def test_output_that_nobody_reads_ends_quietly(arguments: Sequence[str]) -> None:
    """So little that it would be written at the interpreter's end only."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llm_carbon_meter.cli", *arguments]
    done = subprocess.run(
        command, env=BUFFERED, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.READER_GONE, "")


def test_output_that_is_read_ends_as_ever(tmp_path: Path) -> None:
    """Whole, and with code 0."""
    code, errors, read = piped(["report", str(log_of(tmp_path, 2))], ["cat"])
    assert (code, errors) == (0, "")
    assert read.endswith("\n")
    assert "Llama" in read


def test_output_that_goes_nowhere_ends_as_ever(tmp_path: Path) -> None:
    """A shell's ``>&-`` closes it before the verb begins."""
    command = 'exec "$0" -m llm_carbon_meter.cli replay "$1" >&-'
    log = str(log_of(tmp_path, 2))
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, log], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
