"""``llm-carbon-meter check`` as somebody runs it: four hosts, their findings and exit codes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.check.host import POLL_S
from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE, StubScript
from tests.support.scripted_nvml import uuid_of

from .conftest import MakeVllm

ROOT = Path(__file__).parents[2]
SAW = [(0.0, 120.0), (0.2, 600.0), (0.5, 300.0), (0.7, 120.0)]
UUID = uuid_of(1)


COMMAND = [sys.executable, "-m", "llm_carbon_meter.cli", "check"]


def environment(vllm: Path | None) -> dict[str, str]:
    """Nothing of ours, and the packages of a folder."""
    ours = ("LLM_CARBON_METER_", "CUDA_", "VLLM_PLUGINS", "LD_LIBRARY_PATH")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return inherited | {"PYTHONPATH": os.pathsep.join([*([str(vllm)] if vllm else []), str(ROOT)])}


def check(
    *arguments: str, vllm: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the verb in an environment with nothing of ours but what is given."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(vllm) | variables,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def stub_variables(library: Path, script: Path, *extra: str) -> dict[str, str]:
    """Two H100 with counters that move every 20 ms and lag 30 ms."""
    power = {0: SAW, 1: SAW}
    lines = ("name NVIDIA H100 80GB HBM3", *extra)
    stub = StubScript(2, power, 20.0, 30.0, 0.7, time.monotonic() - 60, lines)
    return {"LD_LIBRARY_PATH": str(library), SCRIPT_VARIABLE: str(stub.write(script))}


def findings(printed: str) -> dict[str, Any]:
    """The findings of ``--json`` by topic, the last one where several have it."""
    return {found["topic"].strip(): found for found in json.loads(printed)["findings"]}


def test_a_host_without_a_gpu_models_and_says_so(make_vllm: MakeVllm) -> None:
    """It works, with the quality modelled, and the reason names the driver's library."""
    done = check(vllm=make_vllm(), **{SCRIPT_VARIABLE: "/nowhere"})
    assert done.returncode == 0
    assert "modelled, not measured: load x the data sheet of H100" in done.stdout
    assert "Requests would be metered, with quality modelled." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_without_a_gpu_measured_power_fails(make_vllm: MakeVllm) -> None:
    """Where the settings ask for NVML, its absence is an error with what to do."""
    done = check(vllm=make_vllm(), LLM_CARBON_METER_POWER="nvml")
    assert done.returncode == 1
    assert "FAILS  power" in done.stdout
    assert "Nothing would be metered: see power." in done.stdout


def test_a_healthy_host_shows_its_counters(
    make_vllm: MakeVllm, stub_directory: Path, tmp_path: Path
) -> None:
    """Period and lag are those of the stub; the GPUs are those that CUDA shows, in its order."""
    variables = stub_variables(stub_directory, tmp_path / "script")
    variables |= {"CUDA_VISIBLE_DEVICES": "1,0", "LLM_CARBON_METER_CARBON_INTENSITY": "56"}
    done = check("--json", vllm=make_vllm(), **variables)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["works"], report["quality"]) == (True, "counter")
    found = findings(done.stdout)
    assert found["vllm"]["version"] == "9.9.9"
    assert found["cuda 0"]["uuid"] == UUID
    assert found["cuda 0"]["architecture"] == "Hopper"
    assert found["counter"]["period_s"] == pytest.approx(0.02, abs=0.004)
    assert found["counter"]["lag_s"] == pytest.approx(0.03, abs=0.01)
    assert found["counter"]["counter_to_power"] == pytest.approx(1, abs=0.1)
    assert 0 < found["calls"]["median_s"] < 0.05
    assert found["carbon"]["grams_per_kwh"] == 56
    assert {entry["verdict"] for entry in report["findings"]} == {"ok"}


def test_a_gpu_in_mig_mode_is_refused(
    make_vllm: MakeVllm, stub_directory: Path, tmp_path: Path
) -> None:
    """The GPU is named, the reason given, and power is modelled unless the settings insist."""
    variables = stub_variables(stub_directory, tmp_path / "script", "mig 1 0 9e9")
    done = check(vllm=make_vllm(), **variables)
    assert done.returncode == 0
    assert "in MIG mode: its counter is that of all slices" in " ".join(done.stdout.split())
    assert "set LLM_CARBON_METER_MIG_PARENT=1" in " ".join(done.stdout.split())
    assert "with quality modelled" in done.stdout
    insisting = check(vllm=make_vllm(), LLM_CARBON_METER_POWER="nvml", **variables)
    assert insisting.returncode == 1
    ours = check(vllm=make_vllm(), LLM_CARBON_METER_MIG_PARENT="1", **variables)
    assert ours.returncode == 0
    assert "with quality mig_parent" in ours.stdout


@pytest.mark.parametrize("name", ["update_from_output", "Scheduler", "do_tracing"])
def test_a_vllm_that_does_not_fit_is_named(make_vllm: MakeVllm, name: str) -> None:
    """The version, and what is missing; nothing would be metered."""
    done = check(vllm=make_vllm(name))
    assert done.returncode == 1
    assert "9.9.9: does not fit, it has no vllm." in " ".join(done.stdout.split())
    assert name in done.stdout


def test_a_transformers_that_is_too_old_is_a_note_beside_vllm(make_vllm: MakeVllm) -> None:
    """vLLM brings one for its own use; what it lacks to be metered is named."""
    done = check("--json", vllm=make_vllm("query_length"))
    assert done.returncode == 0
    found = findings(done.stdout)["transformers"]
    assert found["verdict"] == "note"
    assert found["missing"] == [
        "transformers.generation.continuous_batching.requests:FutureRequestState.query_length"
    ]


def test_a_name_that_is_only_promised_is_missing(make_vllm: MakeVllm) -> None:
    """An abstract method that a class inherits is none that can be wrapped."""
    site = make_vllm("schedule")
    file = site / "vllm" / "v1" / "core" / "sched" / "scheduler" / "__init__.py"
    abstract = (
        "import abc\nclass A(abc.ABC):\n    @abc.abstractmethod\n    def schedule(self): ...\n"
    )
    file.write_text(abstract + file.read_text().replace("class Scheduler", "class Scheduler(A)"))
    done = check("--json", vllm=site)
    assert done.returncode == 1
    assert [name.split(":")[1] for name in findings(done.stdout)["vllm"]["missing"]] == [
        "Scheduler.schedule"
    ]


def test_a_vllm_that_ends_its_process_is_survived(make_vllm: MakeVllm) -> None:
    """Importing happens elsewhere: a crash is a finding."""
    site = make_vllm()
    (site / "vllm" / "__init__.py").write_text("import os; os._exit(132)")
    done = check("--json", vllm=site)
    assert done.returncode == 1
    assert "ended with code 132" in findings(done.stdout)["vllm"]["text"]


def test_each_finding_is_printed_as_it_comes(
    make_vllm: MakeVllm, stub_directory: Path, tmp_path: Path
) -> None:
    """Who waits for two seconds of watching the counters sees what was found before."""
    variables = stub_variables(stub_directory, tmp_path / "script")
    came_s: dict[str, float] = {}
    with subprocess.Popen(
        COMMAND,
        env=environment(make_vllm()) | variables,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            came_s[line[7:19].strip()] = time.monotonic()
    assert running.returncode == 0
    assert came_s["calls"] - came_s["power"] > 0.75 * POLL_S
    assert came_s["power"] > came_s["settings"]


def test_no_secret_of_the_settings_is_printed(make_vllm: MakeVllm) -> None:
    """Of an address scheme, host and port; the service does not answer here."""
    done = check(
        vllm=make_vllm(),
        LLM_CARBON_METER_CARBON_PROVIDER="electricitymaps",
        LLM_CARBON_METER_CARBON_URL="http://user:SECRET@127.0.0.1:9/SECRET",
        LLM_CARBON_METER_ELECTRICITYMAPS_TOKEN="SECRET",
        LLM_CARBON_METER_DRIFT_WEBHOOK="https://hooks.example/SECRET",
    )
    assert done.returncode == 0
    assert "LLM_CARBON_METER_CARBON_URL=http://127.0.0.1:9," in done.stdout
    assert "LLM_CARBON_METER_DRIFT_WEBHOOK=https://hooks.example" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variables", "topic", "expected"),
    [
        ({"VLLM_PLUGINS": "mine,other"}, "vllm", "leaves llm_carbon_meter out"),
        ({"LLM_CARBON_METER_ENABLED": "0"}, "settings", "switches metering off"),
        (
            {"LLM_CARBON_METER_STRICT": "1", "LLM_CARBON_METER_PUE": "9"},
            "settings",
            "LLM_CARBON_METER_PUE='9'",
        ),
        ({"LLM_CARBON_METER_CHANNEL_DIR": "/proc/none"}, "channel", "cannot be made"),
        ({"LLM_CARBON_METER_POWER": "replay:/none"}, "power", "No such file"),
    ],
)
def test_what_stops_metering_is_exit_code_1(
    make_vllm: MakeVllm, variables: dict[str, str], topic: str, expected: str
) -> None:
    """Each is a finding with its reason."""
    done = check("--json", vllm=make_vllm(), **variables)
    assert done.returncode == 1
    found = findings(done.stdout)[topic]
    assert found["verdict"] == "fails"
    assert expected in found["text"]


@pytest.mark.parametrize(
    ("variables", "topic", "expected"),
    [
        ({"LLM_CARBON_METER_PUE": "9"}, "settings", "the default is 1.0"),
        ({"LLM_CARBON_METER_POWER": "modelled"}, "power", "as the settings say"),
        ({"LLM_CARBON_METER_ASSUME_GPU": "L4"}, "power", "data sheet of L4"),
    ],
)
def test_what_only_matters_is_a_note(
    make_vllm: MakeVllm, variables: dict[str, str], topic: str, expected: str
) -> None:
    """It is said, and the exit code is 0."""
    done = check("--json", vllm=make_vllm(), **variables)
    assert done.returncode == 0
    found = findings(done.stdout)[topic]
    assert found["verdict"] == "note"
    assert expected in found["text"]


def test_a_recorded_trace_is_no_measurement(make_vllm: MakeVllm, tmp_path: Path) -> None:
    """A trace that can be read is a note with its length."""
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,gpu,watts\n0,0,100\n2,0,200\n")
    done = check(vllm=make_vllm(), LLM_CARBON_METER_POWER=f"replay:{trace}")
    assert done.returncode == 0
    assert "a recorded trace of 1 GPUs and 2 s" in done.stdout
    assert "with quality modelled" in done.stdout


@pytest.mark.engine
def test_the_engines_of_the_tests_fit() -> None:
    """Every hooked name is in the real packages; no engine is started for it."""
    done = check("--json", LLM_CARBON_METER_POWER="modelled")
    assert done.returncode == 0
    for engine in ("vllm", "transformers"):
        assert findings(done.stdout)[engine]["missing"] == []
