"""A campaign by its command, and its worker on a real engine; the GPU is the stub library's."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from llm_carbon_meter import cli
from llm_carbon_meter.campaign import plan as campaign_plan
from llm_carbon_meter.campaign import runner
from llm_carbon_meter.campaign.card import write_card
from llm_carbon_meter.campaign.command import TINY_CONFIG
from llm_carbon_meter.campaign.engines import load_engine
from llm_carbon_meter.campaign.job import PHASES, Job, Occasion
from llm_carbon_meter.campaign.plan import LOADS, MODELS, Load, make_plan, repetition_s
from llm_carbon_meter.campaign.rows import Measurements, Status, occasion
from llm_carbon_meter.campaign.worker import measure
from llm_carbon_meter.physics.model_list import built_in_model, named_config
from llm_carbon_meter.power.nvml.architectures import Measured
from llm_carbon_meter.power.nvml.state import StateReader
from llm_carbon_meter.records import PowerError
from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE, StubScript
from tests.support.scripted_nvml import Stub

pytestmark = pytest.mark.engine

HEAT, POWER_CAP = 0x40, 0x4
TIDY = """
import pickle, sys, time
from multiprocessing.connection import Connection
from pathlib import Path
from llm_carbon_meter.campaign.job import Done
connection = Connection(int(sys.argv[1]))
connection.recv_bytes()
connection.send_bytes(pickle.dumps(Done()))
time.sleep(0.5)
Path("tidied").touch()
"""
"""A worker that has nothing to measure, and much to end."""


def job(*occasions: Occasion, least_s: float = 0.2) -> Job:
    """On the stub's first GPU, with a minute's time."""
    return Job(
        engine="transformers",
        engine_version="5",
        model="tiny",
        checkpoint="",
        config=TINY_CONFIG,
        dtype="float32",
        tensor_parallel=1,
        gpus=["0"],
        gpu="NVML stub",
        least_s=least_s,
        deadline_s=time.monotonic() + 60,
        occasions=occasions,
    )


def command(out: Path, *more: str) -> list[str]:
    """A campaign that tries everything on a toy model."""
    own = (sys.executable, "-m", "llm_carbon_meter.cli", "campaign", "--engine", "transformers")
    return [*own, "--tiny", "--out", str(out), "--seconds", "0.1", *more]


def rows(out: Path) -> list[dict[str, str]]:
    """The file's rows; every one is whole."""
    with out.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert all(None not in each.values() for each in found)
    return found


@pytest.fixture
def host(stub: Stub, stub_directory: Path) -> dict[str, str]:
    """The environment of a process whose two GPUs draw 300 and 200 W."""
    stub.play(StubScript(2, {0: [(0.0, 300.0)], 1: [(0.0, 200.0)]}, period_ms=20))
    return {
        **os.environ,
        # vLLM's processes of two GPUs share the host's cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        SCRIPT_VARIABLE: str(stub.script_path),
        "LD_LIBRARY_PATH": str(stub_directory),
    }


def test_both_phases_of_a_load_are_measured_apart(stub: Stub) -> None:
    """Gross joules are power x time; a whole answer costs more than its prefill."""
    stub.play(StubScript(1, {0: [(0.0, 300.0)]}, period_ms=20))
    load = Load(2, 32, 24)
    found = list(measure(job(*(Occasion(load, phase, 0, 2) for phase in PHASES))))
    assert {row["source"] for row in found} == {"measured"}
    for row in found:
        assert row["joules"] == pytest.approx(300.0 * row["seconds"], rel=0.05)
        assert row["joules_per_request"] == pytest.approx(row["joules"] / row["batches"] / 2)
        assert row["seconds"] >= 0.2
        assert row["idle_watts_before"] == pytest.approx(300.0, rel=0.05)
        assert (row["sm_clock_mhz_lowest"], row["slowed_by"]) == (1980.0, "")
    prefill, whole = (
        [row["joules_per_request"] for row in found if row["phase"] == phase] for phase in PHASES
    )
    assert max(prefill) < min(whole)


def test_rows_of_a_stub_may_say_that_they_are_simulated() -> None:
    """Whoever starts the campaign knows; the file then lacks what was measured elsewhere."""
    plain = job()
    assert plain.identity["source"] == "measured"
    assert replace(plain, source="simulated").identity["source"] == "simulated"


def test_a_model_without_sdpa_runs_by_its_own_attention() -> None:
    """Bloom, in transformers: ALiBi is no mask that PyTorch's attention takes."""
    shape = {"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    config = {"model_type": "bloom", **shape}
    load = Load(2, 8, 2)
    load_engine("transformers", config, "", "float32", 1, [load]).run(load)


def test_a_gpu_that_throttles_is_recorded_as_such(stub: Stub) -> None:
    """Heat is; a power limit is what somebody set, and is named without being an error."""
    load = Load(1, 16, 1)
    for reasons, status, named in (
        (HEAT, Status.THROTTLED, "hw_thermal"),
        (POWER_CAP, Status.OK, "sw_power_cap"),
    ):
        stub.steady(300.0, extra=(f"throttle 0 0 1e9 {reasons}",))
        row = next(measure(job(Occasion(load, PHASES[0], 0, 1))))
        assert (row["status"], row["slowed_by"]) == (status, named)
        assert row["sm_clock_mhz_lowest"] == 900.0


def test_a_repetition_far_from_those_before_is_unstable(stub: Stub) -> None:
    """The same batch at three times the power; with fewer than three others nothing is said."""
    stub.steady(300.0)
    wanted = job(Occasion(Load(1, 16, 1), PHASES[0], 0, 4))
    with contextlib.closing(measure(wanted)) as repetitions:
        found = [next(repetitions)["status"] for _ in range(3)]
        stub.steady(900.0)
        found.append(next(repetitions)["status"])
    assert found == [*[Status.OK] * 3, Status.UNSTABLE]


def test_a_batch_that_does_not_fit_is_recorded_and_the_next_one_measured(stub: Stub) -> None:
    """Once: it will not fit the next time either."""
    stub.steady(300.0)
    giant, small = Load(2**40, 64, 1), Load(1, 16, 1)
    first, *others = measure(job(*(Occasion(load, PHASES[0], 0, 3) for load in (giant, small))))
    assert (first["status"], first["batch"]) == (Status.OUT_OF_MEMORY, 2**40)
    assert "allocate" in first["note"]
    assert [row["batch"] for row in others] == [1] * len(others)
    assert Status.OK in {row["status"] for row in others}


def test_a_checkpoint_is_measured_with_its_own_weights(
    stub: Stub, tiny_model: Path, tmp_path: Path
) -> None:
    """Rows say so, and the card names hardware and versions; the licence is not ours to give."""
    stub.steady(300.0)
    plan = make_plan(
        "transformers",
        [str(tiny_model)],
        dtype="float32",
        gpus="0",
        least_s=0.1,
        repetitions=1,
        tiny=False,
    )
    one = Job.of(plan, plan.models[0], named_config(plan.models[0]), "NVML stub", "5")
    occasions = [Occasion(Load(1, 16, 2), PHASES[1], 0, 1)]
    (row,) = measure(replace(one, occasions=occasions, deadline_s=time.monotonic() + 60))
    assert (row["status"], row["weights"], row["model"]) == ("ok", "checkpoint", tiny_model.name)
    file = Measurements(tmp_path / "m.csv")
    file.append(row)
    file.close()
    text = write_card(file.path, file.rows).read_text()
    assert "GPUs: NVML stub" in text
    assert "driver: stub" in text
    assert "1 ok" in text
    assert "Licence: not stated; that is for whoever measured." in text


def test_what_an_engine_raises_is_a_row(stub: Stub) -> None:
    """The shape of a head that nobody can compute."""
    stub.steady(300.0)
    broken = job(Occasion(Load(1, 16, 1), PHASES[0], 0, 1))
    bad = {**TINY_CONFIG, "num_key_value_heads": 3}
    (row,) = measure(replace(broken, config=bad))
    assert row["status"] == Status.FAILED
    assert row["note"]


@pytest.mark.slow
def test_it_ends_on_time_and_goes_on_where_it_was(tmp_path: Path, host: dict[str, str]) -> None:
    """Killed, out of time, then whole: no good repetition is made twice, none is lost."""
    out = tmp_path / "m.csv"
    with subprocess.Popen(command(out, "--minutes", "5"), env=host) as process:
        while not (out.exists() and len(rows(out)) >= 3):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    kept = rows(out)
    begun_s = time.monotonic()
    subprocess.run(command(out, "--minutes", "0.4"), env=host, check=True)
    assert time.monotonic() - begun_s < 0.4 * 60 + 8
    assert rows(out)[: len(kept)] == kept
    subprocess.run(command(out, "--minutes", "3", "--repetitions", "2"), env=host, check=True)
    file = Measurements(out)
    counts = Counter(occasion(row) for row in file.rows)
    assert len(counts) == 8
    good = file.good()
    assert min(good.values()) >= 2
    assert (tmp_path / "m.parquet").exists()
    file.close()


def test_ctrl_c_leaves_the_file_and_no_process(tmp_path: Path, host: dict[str, str]) -> None:
    """What was measured is printed."""
    out = tmp_path / "m.csv"
    with subprocess.Popen(
        command(out, "--minutes", "5"), env=host, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (out.exists() and rows(out)):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "J/request" in printed
    assert rows(out)


def test_a_worker_that_dies_is_a_row_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel's killer takes the process that has the weights."""
    monkeypatch.setattr("llm_carbon_meter.campaign.runner.WORKER", "llm_carbon_meter.units")
    out = tmp_path / "m.csv"
    options = ("--engine", "transformers", "--tiny", "--minutes", "1", "--out", str(out))
    assert cli.main(["campaign", *options, "--gpus", ""]) == 1
    (row,) = rows(out)
    assert row["status"] == "failed"
    assert "its process ended with code 0" in row["note"]


def test_a_worker_that_is_done_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at once it would leave processes of its own behind, at work on the GPUs."""
    (tmp_path / "tidy.py").write_text(TIDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "WORKER", "tidy")
    file = Measurements(tmp_path / "m.csv")
    wanted = job(Occasion(Load(1, 16, 1), PHASES[0], 0, 1))
    runner.measure([wanted], file, time.monotonic() + 60)
    file.close()
    assert (tmp_path / "tidied").exists()


def test_a_known_counter_needs_so_many_ticks_and_an_unknown_one_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never less than a second."""
    known = {"quick": 0.01, "slow": 0.2}
    monkeypatch.setattr(
        campaign_plan, "measured", lambda gpu: Measured(known[gpu], 0.0) if gpu in known else None
    )
    assert [repetition_s(gpu) for gpu in ("quick", "slow", "unknown")] == [1.0, 10.0, 5.0]


def test_every_default_model_and_load_can_be_planned() -> None:
    """Names are in the list, and most loads fit most contexts."""
    plan = make_plan(
        "vllm", [], dtype="bfloat16", gpus="0", least_s=None, repetitions=5, tiny=False
    )
    assert tuple(plan.models) == MODELS
    assert all(built_in_model(name).max_context > 0 for name in plan.models)
    assert tuple(plan.loads) == LOADS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "Llama-9"), "nearest"),
        (("--out", "m.txt"), "expected the name of a .csv file"),
        (("--gpus", "0,x"), "expected indices or UUIDs of nvidia-smi"),
        (("--gpus", "0,1"), "with transformers a campaign uses one GPU"),
        (("--gpus", "0", "--repetitions", "0"), "expected at least 1"),
        (("--minutes", "0"), "--minutes 0: expected more than 0"),
        (("--minutes", "nan"), "--minutes nan: expected more than 0, and an end"),
        (("--minutes", "1e400"), "--minutes inf: expected more than 0, and an end"),
        (("--seconds", "nan"), "--seconds nan: expected more than 0, and an end"),
        (("--seconds", "0"), "--seconds 0: expected more than 0, and an end"),
    ],
)
def test_wrong_options_are_named(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    common = ("--engine", "transformers", "--minutes", "1", "--out", str(tmp_path / "m.csv"))
    assert cli.main(["campaign", *common, *options]) == 1
    assert message in capsys.readouterr().err


def test_the_state_of_a_gpu_is_what_it_says(stub: Stub) -> None:
    """A stub has no thermometer and no limit: those are unknown, not 0."""
    stub.steady(300.0, extra=(f"throttle 0 0 1e9 {HEAT | POWER_CAP}",))
    reader = StateReader(["0"])
    state = reader.read()
    assert state.reasons == {"hw_thermal", "sw_power_cap"}
    assert (state.sm_clock_mhz, state.temperature_c) == (900.0, None)
    assert reader.power_limit_watts() is None
    reader.close()


def test_a_gpu_that_is_lost_is_a_power_error(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both questions; anything else would leave the worker without a word."""

    def lost(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    stub.steady(300.0)
    reader = StateReader(["0"])
    for call in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetEnforcedPowerLimit"):
        monkeypatch.setattr(pynvml, call, lost)
    with pytest.raises(PowerError, match="the GPUs' clocks were read; NVML says: GPU is lost"):
        reader.read()
    with pytest.raises(PowerError, match="the GPU's power limit was read; NVML says: GPU is lost"):
        reader.power_limit_watts()
    reader.close()


@pytest.mark.slow
def test_vllm_is_driven_the_same_way(tmp_path: Path, host: dict[str, str]) -> None:
    """Its dummy weights are drawn anew, on two GPUs too; rows of both engines share a file."""
    out = tmp_path / "m.csv"
    once = ("--minutes", "4", "--repetitions", "1", "--gpus")
    for gpus in ("0", "0,1"):
        whole = command(out, *once, gpus)
        vllm = ["vllm" if word == "transformers" else word for word in whole]
        subprocess.run(vllm, env=host, check=True)
    subprocess.run(command(out, *once, "0"), env=host, check=True)
    good = Counter(
        (row["engine"], row["tensor_parallel"])
        for row in rows(out)
        if (row["status"], row["source"]) == ("ok", "measured")
    )
    assert good == {("vllm", "1"): 8, ("vllm", "2"): 8, ("transformers", "1"): 8}
