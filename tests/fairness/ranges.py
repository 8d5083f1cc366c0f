"""The ranges from which simulated worlds are drawn.

Fixed before any policy was compared and before anything was tuned; they stay as they are. Each is
as wide as measurements of others and the data sheets leave it open. A sensor's gain is not
varied: nobody can tell a wrong gain from another truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from llm_carbon_meter.training.study.kernel_world import Draws

SIMULATED_S: Final = 150.0
"""Of serving, in each draw and for each concurrency."""
WARM_UP_S: Final = 30.0
"""Requests that ran a step before this are not judged, under any policy: weights are learnt in
seconds, and a server runs for days."""

DEPLOYMENTS: Final = (
    ("H100", "Llama-3.1-8B", 1),
    ("A100", "Llama-3.1-8B", 1),
    ("L4", "Llama-3.2-3B", 1),
    ("H100", "Gemma2-9b", 1),
    ("H100", "Qwen3-30B-A3B", 1),
    ("H100", "Llama-3.1-70B", 4),
    ("A100", "Mixtral-8x7B", 4),
    ("H200", "Qwen2.5-14B", 2),
)
"""GPU, model, tensor parallel: the attributor knows these names and nothing else of a world."""
TRACES: Final = ("conv", "code")
"""Of Azure 2023; without the data folder, the quantiles of ``conv`` stand for both."""
SENSORS: Final = (("counter", 0.5), ("sampled_counter", 0.35), ("averaged_power", 0.15))
"""An exact integral, one that sees 25 % of the time, or no counter but a 1 s average of power."""

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    # The GPU: shares of the data sheet's peaks, bandwidth and dynamic power (board - idle).
    "compute_efficiency": (0.35, 0.75),
    "attention_efficiency": (0.15, 0.6),
    "bandwidth_efficiency": (0.55, 0.92),
    "kv_bandwidth_efficiency": (0.35, 0.85),
    "idle_ratio": (0.7, 1.8),  # true idle power / data sheet's
    "awake_share": (0.05, 0.3),  # of the dynamic power, drawn by a step whatever it does
    "compute_power_share": (0.6, 1.1),  # of what is left, at the peak
    "memory_power_share": (0.3, 0.75),
    "launch_s": (0.0002, 0.004),  # of each step, without work
    "launch_per_request_s": (0.0, 0.00002),
    "host_gap_s": (0.0002, 0.002),  # between two steps, where the engine is not async
    "report_delay_s": (0.0, 0.001),  # until the engine sees that a step is done
    "power_noise": (0.005, 0.05),  # relative, of each step
    "duration_noise": (0.005, 0.05),
    "drift": (0.0, 0.06),  # relative, of all power, over some minutes
    "imbalance": (0.0, 0.04),  # relative, between the GPUs of a group
    # A foreign process, where there is one: bursts of watts, as a share of the board's limit.
    "foreign_share": (0.01, 0.1),
    "foreign_on_s": (2.0, 10.0),
    "foreign_off_s": (10.0, 60.0),
    # The sensor.
    "counter_period_s": (0.02, 0.1),
    "counter_lag_s": (0.0, 0.05),
    "period_jitter": (0.0, 0.1),  # relative
    "poll_jitter_s": (0.0, 0.005),
    "silence_s": (3.0, 15.0),  # of a dead GPU until it is restarted
    # The engine and its traffic.
    "load": (0.6, 1.3),  # offered / what the concurrency can serve
    "cached_prompt_share": (0.1, 0.9),  # of a prompt that meets the prefix cache
    "prefix_hits": (0.0, 0.5),  # of the requests
    "brief_requests": (0.03, 0.15),  # of the requests: one to three tokens of output
    "stopped_requests": (0.0, 0.2),  # of the requests: one step too many under async scheduling
    "kv_room": (0.6, 2.0),  # KV capacity / what the concurrency needs on average
}

TOKEN_BUDGETS: Final = (512, 2048, 8192)
SHARPNESS: Final = (2, 4, 8)
"""Exponent of the smooth maximum of compute and memory time."""
SATURATION: Final = (4, 8)
"""Exponent with which power bends towards the board's limit."""
SEEN_SHARE: Final = 0.25
SEEN_PERIOD_S: Final = 0.1
AVERAGED_OVER_S: Final = 1.0
PROBABILITIES: Final[Mapping[str, float]] = {
    "async_scheduling": 0.6,
    "foreign_process": 0.3,
    "reset": 0.2,
    "dead": 0.1,
}


KERNEL_S: Final = 100.0
"""As `SIMULATED_S`, of each load of a world that is made of measured kernels."""
KERNEL_DEPLOYMENTS: Final = (
    ("H200", "Llama-3.1-8B", 1),
    ("H100", "Qwen3-30B-A3B", 1),
    ("A100", "Llama-3.1-8B", 1),
    ("H200", "Qwen3-30B-A3B", 1),
    ("H100", "Llama-3.1-8B", 2),
    ("L40S", "Qwen3-8B", 1),
    ("H200", "Qwen3-14B", 1),
    ("H100", "Llama-3.1-8B", 1),
)
"""Of worlds that are made of measured kernels."""
KEPT_OUT: Final = (("B200", "Llama-3.1-8B", 1), ("B200", "Qwen3-30B-A3B", 1))
"""A GPU on which nothing is ever tuned; it is reported apart."""
KERNEL_SENSORS: Final = (("counter", 0.6), ("sampled_counter", 0.3), ("averaged_power", 0.1))
KERNEL_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "counter_lag_s": (0.0, 0.15),
    "link_efficiency": (0.4, 0.8),
    "exchange_s": (0.000005, 0.00002),  # of an all-reduce, without its bytes
}
"""Beside those of sensors, engines and traffic above; GPUs are as `kernel_world.Draws` has them."""


@dataclass(frozen=True)
class World:
    """One draw."""

    seed: int
    gpu: str
    model: str
    tensor_parallel: int
    trace: str
    sensor: str
    token_budget: int
    sharpness: int
    saturation: int
    values: Mapping[str, float]
    """Of `RANGES`."""
    happens: Mapping[str, bool]
    """Of `PROBABILITIES`."""
    kernels: Draws | None = None
    """Of a world that is made of measured kernels."""


def draw(seed: int) -> World:
    """The world of a seed."""
    random = np.random.default_rng([2023, seed])
    gpu, model, tensor_parallel = DEPLOYMENTS[seed % len(DEPLOYMENTS)]
    sensors, odds = [name for name, _ in SENSORS], [odd for _, odd in SENSORS]
    return World(
        seed,
        gpu,
        model,
        tensor_parallel,
        trace=str(random.choice(TRACES)),
        sensor=str(random.choice(sensors, p=odds)),
        token_budget=int(random.choice(TOKEN_BUDGETS)),
        sharpness=int(random.choice(SHARPNESS)),
        saturation=int(random.choice(SATURATION)),
        values={name: float(random.uniform(*span)) for name, span in RANGES.items()},
        happens={name: bool(random.random() < odd) for name, odd in PROBABILITIES.items()},
    )


def draw_kernels(seed: int, deployments: Sequence[tuple[str, str, int]]) -> World:
    """The world of a seed that is made of measured kernels."""
    random = np.random.default_rng([2026, seed])
    gpu, model, tensor_parallel = deployments[seed % len(deployments)]
    sensors, odds = zip(*KERNEL_SENSORS, strict=True)
    sensor = str(random.choice(sensors, p=odds))
    values = {name: float(random.uniform(*span)) for name, span in KERNEL_RANGES.items()}
    return replace(
        draw(seed),
        gpu=gpu,
        model=model,
        tensor_parallel=tensor_parallel,
        sensor=sensor,
        token_budget=int(random.choice(TOKEN_BUDGETS)),
        values={**draw(seed).values, **values},
        kernels=Draws.of(random),
    )
