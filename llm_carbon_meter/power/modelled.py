"""No sensor: load x data sheet of an assumed GPU. Says ``modelled``, never ``measured``."""

import threading
from collections.abc import Sequence

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.records import EnergyReading, Quality, Source


class ModelledMeter:
    """Joules of assumed GPUs: expected watts while a step runs, idle watts otherwise.

    Args:
        gpu: whose data sheet.
        count: GPUs of the engine; all of them carry the same load.
        start_s: monotonic time at which counting starts.
    """

    source = Source.MODELLED
    quality = Quality.MODELLED

    def __init__(self, gpu: GpuSpec, count: int, start_s: float) -> None:
        self.gpus: Sequence[str] = tuple(f"modelled-{index}" for index in range(count))
        self._gpu = gpu
        self._known_until_s = start_s
        self._joules = 0.0
        self._watts = gpu.idle_watts
        self._lock = threading.Lock()

    def add_load(self, windows: Sequence[tuple[float, float, float]], known_until_s: float) -> None:
        """Enter the spans (start, end, watts) in which the GPUs worked, up to a known time."""
        busy_s = sum(end - max(start, self._known_until_s) for start, end, _ in windows)
        busy_joules = sum(
            (end - max(start, self._known_until_s)) * watts for start, end, watts in windows
        )
        with self._lock:
            elapsed_s = known_until_s - self._known_until_s
            if elapsed_s <= 0:
                return
            joules = busy_joules + (elapsed_s - busy_s) * self._gpu.idle_watts
            self._joules += joules
            self._watts = joules / elapsed_s
            self._known_until_s = known_until_s

    def read(self) -> Sequence[EnergyReading]:
        """Joules up to the time until which the load is known."""
        with self._lock:
            return [
                EnergyReading(self._known_until_s, gpu, self._joules, self._watts)
                for gpu in self.gpus
            ]

    def close(self) -> None:
        """Nothing to release."""
