"""Looks at the power source: which GPUs, what their counters do now, who else is on them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.check.host_energy import check_rapl, rapl_problem
from llm_carbon_meter.config import Config, cuda_device_order, cuda_visible_devices
from llm_carbon_meter.exporters.columns import figure, percent
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.kept_coefficients import kept_lags
from llm_carbon_meter.physics.deployed_gpu import NAME, POWER_LIMIT, DeployedGpu, gpu_of
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.power.characterise import (
    Floats,
    Polled,
    agreement,
    histogram_ms,
    lag_s,
    moves,
    poll,
)
from llm_carbon_meter.power.contention import Sharing, own_processes, sees_host_numbers, sharing
from llm_carbon_meter.power.nvml.architectures import measured
from llm_carbon_meter.power.nvml.devices import listed_devices
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.nvml.survey import Clocks, GpuFacts, Survey, survey
from llm_carbon_meter.power.replay import read_trace
from llm_carbon_meter.records import MeterError, PowerError, Quality


def check_power(config: Config, poll_s: float) -> Iterator[Finding]:
    """Look at the power source of the settings, and at the GPUs where it is NVML."""
    if config.power.startswith("replay:"):
        yield _replay(Path(config.power.removeprefix("replay:")))
    elif config.power.startswith("rapl"):
        yield check_rapl(config)
    elif config.power == "modelled":
        yield _modelled(config, _seen(), "as the settings say")
    else:
        try:
            yield from _nvml(config, poll_s)
        except PowerError as error:
            yield _without_sensor(config, (), error)


def _replay(path: Path) -> Finding:
    try:
        trace = read_trace(path)
    except PowerError as error:
        return Finding("power", Verdict.FAILS, str(error))
    length = f"{len(trace.segments)} GPUs and {figure(trace.length_s)} s"
    text = f"a recorded trace of {length}, over and over"
    return Finding("power", Verdict.NOTE, text, quality=Quality.MODELLED)


def _seen() -> Sequence[GpuFacts]:
    """The GPUs that CUDA shows; none where there is no driver."""
    with suppress(PowerError):
        return _survey().gpus
    return ()


def _survey() -> Survey:
    visible = cuda_visible_devices()
    return survey(None if visible is None else listed_devices(visible))


def _without_sensor(config: Config, gpus: Sequence[GpuFacts], error: PowerError) -> Finding:
    if config.power == "nvml":
        return Finding("power", Verdict.FAILS, str(error))
    rapl = "" if rapl_problem() else "; an engine on the CPU would be measured by RAPL"
    return _modelled(config, gpus, f"{error}{rapl}")


def _modelled(config: Config, gpus: Sequence[GpuFacts], why: str) -> Finding:
    try:
        spec, remark, _ = _deployed(config, gpus)
    except MeterError as error:
        return Finding("power", Verdict.FAILS, str(error))
    whose = f"{spec.label}: {remark}" if remark else spec.label
    text = f"modelled, not measured: load x the data sheet of {whose} ({why})"
    return Finding("power", Verdict.NOTE, text, {"sheet": spec.name}, Quality.MODELLED)


def _deployed(config: Config, gpus: Sequence[GpuFacts]) -> DeployedGpu:
    """The data sheet that a server on some GPUs would take.

    Raises:
        SpecError: the assumed GPU is not known, and the settings are strict.
    """
    limits = [gpu.power_limit_watts for gpu in gpus if gpu.power_limit_watts is not None]
    names = [gpu.instance or gpu.name for gpu in gpus]
    fields = {NAME: names[0]} if names else {}
    return gpu_of(config, {**fields, **({POWER_LIMIT: min(limits)} if limits else {})}, Faults())


def _nvml(config: Config, poll_s: float) -> Iterator[Finding]:
    host = _survey()
    yield _driver(host, cuda_visible_devices())
    yield from _order(host, cuda_device_order())
    try:
        meter = open_nvml([gpu.device for gpu in host.gpus], mig_parent=config.mig_parent)
    except PowerError as error:
        for number, gpu in enumerate(host.gpus):
            yield _identity(number, gpu)
            yield _sheet(config, gpu)
        yield _without_sensor(config, host.gpus, error)
        return
    with closing(meter):
        polled, took_s = poll(meter, poll_s)
    learnt_s = kept_lags(Path(config.prices_file)) if config.prices_file else {}
    for number, gpu in enumerate(host.gpus):
        if gpu.uuid in polled:
            learnt = learnt_s.get(gpu.uuid)
            yield _identity(number, gpu)
            yield _sheet(config, gpu)
            yield _counter(gpu, polled[gpu.uuid], learnt)
            yield _processes(gpu.processes)
    yield _calls(took_s)


def _driver(host: Survey, visible: str | None) -> Finding:
    text = f"NVML, driver {host.driver}; {len(host.names)} GPUs"
    if visible is not None:
        text += f", of which CUDA_VISIBLE_DEVICES={visible} shows {len(host.gpus)}"
    return Finding("power", Verdict.OK, text, {"driver": host.driver, "num_gpus": len(host.names)})


def _order(host: Survey, order: str) -> Iterator[Finding]:
    """Whether CUDA and NVML mean the same GPU by a number, where a host has GPUs of several types.

    CUDA numbers the fastest first, unless its variable says otherwise; NVML goes by the bus.
    """
    if len(set(host.names)) < 2:
        return
    text = f"this host has {', '.join(dict.fromkeys(host.names))}"
    if order == "PCI_BUS_ID":
        yield Finding("cuda order", Verdict.OK, f"{text}; CUDA numbers them as NVML does")
    elif any(gpu.device.isdecimal() for gpu in host.gpus):
        text += ", and CUDA numbers the fastest first, NVML the first on the bus: another GPU than "
        text += "the engine's may be metered; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs in "
        yield Finding("cuda order", Verdict.NOTE, text + "CUDA_VISIBLE_DEVICES")


def _identity(number: int, gpu: GpuFacts) -> Finding:
    text = f"{gpu.instance or gpu.name} ({gpu.architecture.name}), NVML's GPU {gpu.device}"
    text += f", {gpu.uuid}" if gpu.uuid != gpu.device else ""
    figures = {"uuid": gpu.uuid, "name": gpu.name, "architecture": gpu.architecture.name}
    scopes = {
        Quality.MIG_PARENT: "; in MIG mode: its counter is that of all slices",
        Quality.MODULE_SCOPE: "; its sensors count the CPU of its module too",
    }
    verdict = Verdict.NOTE if gpu.scope in scopes else Verdict.OK
    return Finding(f"cuda {number}", verdict, text + scopes.get(gpu.scope, ""), figures)


def _sheet(config: Config, gpu: GpuFacts) -> Finding:
    """Whose data sheet stands for a GPU, and what the GPU is set to."""
    try:
        spec, remark, unknown = _deployed(config, [gpu])
    except MeterError as error:
        return Finding("  sheet", Verdict.FAILS, str(error))
    figures = {
        "sheet": spec.name,
        "board_watts": spec.board_watts,
        "power_limit_watts": gpu.power_limit_watts,
        "clock_mhz": gpu.clocks.set_to if gpu.clocks else None,
    }
    doubts = [remark, str(unknown or ""), spec.approximation, _clock(gpu.clocks)]
    said = "; ".join(filter(None, doubts))
    text = f"{spec.name}, {figure(spec.board_watts)} W; {_limit(gpu, spec)}"
    verdict = Verdict.NOTE if said else Verdict.OK
    return Finding("  sheet", verdict, f"{text}; {said}" if said else text, figures)


def _limit(gpu: GpuFacts, spec: GpuSpec) -> str:
    limit = gpu.power_limit_watts
    if limit is None:
        return "the GPU does not say its power limit"
    text = f"power limit {limit:g} W"
    if spec.is_limited:
        return f"{text}, which estimates and attribution keep to"
    return f"{text}, more than the data sheet's" if limit * spec.part > spec.board_watts else text


def _clock(clocks: Clocks | None) -> str:
    """A clock that somebody has set lower; NVML does not tell locked ones (nvidia-smi -lgc)."""
    if clocks is None or clocks.set_to >= clocks.default:
        return ""
    return (
        f"SM clock set to {clocks.set_to:g} MHz of {clocks.default:g}: estimates know no clocks "
        "before they have learnt from steps"
    )


def _counter(gpu: GpuFacts, seen: Polled, learnt_s: float | None) -> Finding:
    figures = {**_figures(seen), "learnt_lag_s": learnt_s}
    if seen.quality is Quality.POWER:
        text = "no energy counter that can be believed: power is integrated"
        if gpu.architecture.counts:
            text += f" (every {gpu.architecture.name} has one; is this a virtual GPU?)"
        return Finding("  counter", Verdict.NOTE, text, figures, seen.quality)
    if seen.period_s is None:
        text = f"moved {len(moves(seen.joules))} times while it was watched"
        return Finding("  counter", Verdict.NOTE, text, figures, seen.quality)
    text = f"moves every {_ms(seen.period_s)} (median of {len(seen.intervals_s)}), "
    text += _lag(gpu, seen) if learnt_s is None else f"a meter learnt its lag: {_ms(learnt_s)}"
    text += f"; {figure(seen.mean_watts)} W now"
    if gpu.architecture.sampled is not None:
        text += f"; sensor seen to look {percent(gpu.architecture.sampled)} of the time"
    return Finding("  counter", Verdict.OK, text, figures, seen.quality)


def _lag(gpu: GpuFacts, seen: Polled) -> str:
    usual, now_s = measured(gpu.name), lag_s(seen)
    if usual is not None:
        return f"on this type {_ms(usual.period_s)} and a lag of {_ms(usual.lag_s)} were measured"
    return "lag not to be seen at this steady power" if now_s is None else f"lag {_ms(now_s)}"


def _figures(seen: Polled) -> dict[str, Any]:
    return {
        "quality": seen.quality,
        "period_s": seen.period_s,
        "lag_s": lag_s(seen),
        "intervals_ms": histogram_ms(seen.intervals_s),
        "counter_to_power": agreement(seen),
    }


def _processes(listed: Sequence[int]) -> Finding:
    own = own_processes(listed, os.getpid())
    shared = sharing(listed, own, host_numbers=sees_host_numbers(listed))
    figures = {"sharing": shared, "processes": list(listed)}
    if shared is Sharing.ALONE:
        return Finding("  shared", Verdict.OK, "nobody else computes here", figures)
    if shared is Sharing.UNKNOWN:
        text = "unknown: NVML numbers processes otherwise than this container"
        return Finding("  shared", Verdict.OK, text, figures)
    text = (
        f"{', '.join(map(str, listed))} compute here: requests are labelled contended, "
        "unless these are the server's own processes"
    )
    return Finding("  shared", Verdict.NOTE, text, figures)


def _calls(took_s: Floats) -> Finding:
    median_s, slow_s = np.quantile(took_s, [0.5, 0.99]).tolist()
    text = f"reading all GPUs takes {_ms(median_s)}, one time in a hundred {_ms(slow_s)}"
    return Finding("calls", Verdict.OK, text, {"median_s": median_s, "p99_s": slow_s})


def _ms(seconds: float) -> str:
    return f"{figure(1000 * seconds)} ms"
