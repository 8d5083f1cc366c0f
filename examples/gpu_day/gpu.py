"""The GPU of a day: a real one, or a script of the NVML stub library that follows what is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from rows import MEASURED, SIMULATED, DayError

from llm_carbon_meter.campaign.command import default_gpu
from llm_carbon_meter.power.nvml.survey import survey
from llm_carbon_meter.records import PowerError
from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE, StubScript, build

STUB_NAME = "NVIDIA H100 80GB HBM3"
IDLE_WATTS, BUSY_WATTS = 120.0, 600.0
PERIOD_MS, LAG_MS = 20.0, 30.0
"""Of the rehearsal's counter: the day has to find them."""

Load = AbstractContextManager[object]


class DayGpu(Protocol):
    """Where a day's joules come from."""

    source: str
    device: str
    """Of torch."""
    index: str
    """As NVML numbers it."""

    def load(self, work: Callable[[], object] | None) -> Load:
        """Work is repeated inside the ``with`` block; None leaves the GPU idle."""
        ...

    def busy(self) -> AbstractContextManager[None]:
        """Something of another process works inside the ``with`` block."""
        ...


class RealGpu:
    """The first NVIDIA GPU that this process may use.

    Raises:
        DayError: there is none, or torch cannot use it.
    """

    source, device = MEASURED, "cuda"

    def __init__(self) -> None:
        self.index = default_gpu()
        if not self.index:
            raise DayError(
                "NVML shows no NVIDIA GPU here: run on a host with one (nvidia-smi lists it), or "
                "rehearse on the stub library with POWER=stub"
            )

    def load(self, work: Callable[[], object] | None) -> Load:
        """Kernels in a thread of this process."""
        return _steady(work, self.device)

    def busy(self) -> AbstractContextManager[None]:
        """The GPU knows by itself."""
        return nullcontext()


class StubGpu:
    """A script whose power rises while something works; counters begin at 0 in every process.

    Args:
        script: file that ``NVML_STUB_SCRIPT`` names.
    """

    source, device, index = SIMULATED, "cpu", "0"

    def __init__(self, script: Path) -> None:
        self._path = script
        self._points = [(0.0, IDLE_WATTS)]
        self._origin_s = time.monotonic()
        self._write()

    def _write(self) -> None:
        StubScript(
            gpus=1,
            power={0: self._points},
            period_ms=PERIOD_MS,
            lag_ms=LAG_MS,
            origin_s=self._origin_s,
            extra=(f"name {STUB_NAME}",),
        ).write(self._path)

    def _turn(self, watts: float) -> None:
        now_s = time.monotonic() - self._origin_s
        self._points += [(now_s, self._points[-1][1]), (now_s, watts)]
        self._write()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Full power from here to the end of the block."""
        self._turn(BUSY_WATTS)
        try:
            yield
        finally:
            self._turn(IDLE_WATTS)

    @contextmanager
    def load(self, work: Callable[[], object] | None) -> Iterator[None]:
        """The work runs on the CPU."""
        with self.busy() if work else nullcontext(), _steady(work, self.device):
            yield


def _steady(work: Callable[[], object] | None, device: str) -> Load:
    if work is None:
        return nullcontext()
    from llm_carbon_meter.campaign.torch_work import SteadyLoad

    return SteadyLoad(work, device)


def real_environment() -> dict[str, str]:
    """Variables of processes that shall use one GPU alone, numbered as NVML does."""
    index = default_gpu()
    if not index:
        return {}
    return {"CUDA_VISIBLE_DEVICES": index, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def stub_environment(folder: Path) -> dict[str, str]:
    """Variables of processes that shall see the stub, compiled into a folder.

    Raises:
        MeterError: there is no C compiler.
    """
    library = build(folder.resolve())
    script = folder.resolve() / "script.txt"
    return {"LD_LIBRARY_PATH": str(library), SCRIPT_VARIABLE: str(script)}


def facts(gpu: DayGpu) -> dict[str, Any]:
    """What NVML says of the GPU, for the host's row.

    Raises:
        DayError: NVML says nothing of it.
    """
    try:
        seen = survey([gpu.index])
    except PowerError as error:
        raise DayError(f"GPU {gpu.index}: {error}") from error
    (one,) = seen.gpus
    return {
        "gpu": one.name,
        "architecture": one.architecture.name,
        "driver": seen.driver,
        "power_limit_watts": one.power_limit_watts,
        "sm_clock_set_to_mhz": one.clocks.set_to if one.clocks else None,
        "other_processes": len(one.processes),
    }
