"""NVML that cannot be opened, ends under the meter, or loses a GPU."""

import sys
import types
from typing import Any

import pynvml
import pytest

from llm_carbon_meter.power.nvml.engine_gpus import engine_gpus
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.nvml.survey import survey
from llm_carbon_meter.records import PowerError
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.interpreters import run_python
from tests.support.scripted_nvml import MIG_UUID, UUIDS


def test_lost_gpu_is_left_out_and_comes_back(stub: Any, clock: Any) -> None:
    """While a GPU is lost the other is still read; the lost one returns in a new session."""
    script = stub.steady(100, 400)
    meter = open_nvml(["0", "1"], clock)
    assert len(meter.read()) == 2
    stub.play(StubScript(2, script.power, origin_s=script.origin_s, extra=("lost 0 0 9e9",)))
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]  # reopened: still away
    stub.play(script)
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]  # not again within 1 s
    clock.ahead_s += 1.1
    back, other = meter.read()
    meter.close()
    assert back.joules == pytest.approx(100 * 60, rel=0.05)
    assert other.joules == pytest.approx(400 * 60, rel=0.05)


def test_every_gpu_lost_is_an_error(stub: Any) -> None:
    """No answer at all is a PowerError that names the GPUs."""
    stub.steady(100, 400)
    meter = open_nvml(["0", "1"])
    stub.steady(100, 400, extra=("lost 0 0 9e9", "lost 1 0 9e9"))
    with pytest.raises(PowerError, match=f"{UUIDS[0]}, {UUIDS[1]}.*fell off the bus"):
        meter.read()
    meter.close()


def test_ended_session_is_opened_again(stub: Any) -> None:
    """If somebody ends NVML under the meter, the next read but one works again."""
    stub.steady(100)
    meter = open_nvml(["0"])
    pynvml.nvmlShutdown()
    with pytest.raises(PowerError, match="session ended"):
        meter.read()
    assert len(meter.read()) == 1
    meter.close()


def test_driver_that_stays_away_is_retried(stub: Any, clock: Any) -> None:
    """While NVML cannot be opened again reads fail clearly, and work once it can."""
    script = stub.steady(100)
    meter = open_nvml(["0"], clock)
    pynvml.nvmlShutdown()
    stub.steady(100, extra=("init_error 9",))
    for _ in range(3):
        with pytest.raises(PowerError):
            meter.read()
    stub.play(script)
    clock.ahead_s += 1.1
    assert len(meter.read()) == 1
    meter.close()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


@pytest.mark.parametrize(
    ("code", "advice"),
    [(9, "load the NVIDIA driver"), (4, "/dev/nvidia"), (18, "restart the host"), (77, "77")],
)
def test_init_error_says_what_to_do(stub: Any, code: int, advice: str) -> None:
    """Each way in which NVML refuses to open becomes a PowerError with advice."""
    stub.steady(100, extra=(f"init_error {code}",))
    with pytest.raises(PowerError, match=rf"opening NVML failed.*{advice}.*=modelled"):
        open_nvml(["0"])


def test_read_after_close_is_an_error(stub: Any) -> None:
    """A closed meter does not read, and closing twice is harmless."""
    stub.steady(100)
    meter = open_nvml(["0"])
    meter.close()
    meter.close()
    with pytest.raises(PowerError, match="after close"):
        meter.read()


def library_present() -> bool:
    """Whether a real driver is installed."""
    code = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"
    return run_python(code).returncode == 0


def test_missing_library_names_driver_and_capability() -> None:
    """Without libnvidia-ml.so.1 the error names the driver, the capability, a way on."""
    if library_present():
        pytest.skip("this machine has an NVIDIA driver")
    result = run_python(
        "from llm_carbon_meter.power.nvml.nvml_meter import open_nvml; open_nvml(['0'])"
    )
    assert "PowerError" in result.stderr
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in result.stderr
    assert "LLM_CARBON_METER_POWER=modelled" in result.stderr


def test_importing_needs_no_pynvml() -> None:
    """The module can be imported where nvidia-ml-py is not installed; opening explains."""
    code = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from llm_carbon_meter.power.nvml.nvml_meter import open_nvml\n"
        "open_nvml(['0'])"
    )
    assert "PowerError: pynvml was imported" in run_python(code).stderr


def test_wrong_pynvml_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that only shares the name is recognised by what it lacks."""
    monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    with pytest.raises(PowerError, match="pip uninstall pynvml"):
        open_nvml(["0"])


def test_a_binding_that_speaks_bytes_is_refused(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names fit neither a label nor a lock file, and it cannot be asked for a UUID."""
    stub.steady(100)
    monkeypatch.delattr(pynvml, "convertStrBytes")  # what the first binding with text has
    with pytest.raises(PowerError, match=r"an old or another package; .*install .*nvidia-ml-py"):
        open_nvml(["0"])


@pytest.mark.parametrize("architecture", [9, 4])
def test_a_name_that_is_no_utf_8_is_read_all_the_same(stub: Any, architecture: int) -> None:
    """The binding fails at it; what cannot be read of the name is marked."""
    extra = ("name NVIDIA \udcff100", f"architecture {architecture}")
    stub.steady(100, extra=extra)
    meter = open_nvml(["0"])
    assert [reading.gpu for reading in meter.read()] == [UUIDS[0]]
    meter.close()
    seen = survey(None)
    assert (seen.names, seen.gpus[0].name) == (["NVIDIA \ufffd100"], "NVIDIA \ufffd100")
    assert engine_gpus(["0"]).name == "NVIDIA \ufffd100"
    stub.steady(100, extra=("instance MIG \udcff", "mig 0 0 9e9"))
    assert engine_gpus([MIG_UUID]).name == "MIG \ufffd"
