"""What is called around the methods of vLLM's EngineCore process that hooks.py lists.

An error of ours is counted and metering goes silent; serving goes on.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_carbon_meter.config import Config, cuda_visible_devices
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.power.nvml.devices import visible_devices
from llm_carbon_meter.records import MeterError, SpecError
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from llm_carbon_meter.servers.shared.loaded_config import loaded_config
from llm_carbon_meter.servers.shared.meter_process import MeterProcess, Setup
from llm_carbon_meter.servers.vllm.capture import StepCapture, request_end


class _Engine(NamedTuple):
    """What hangs on one scheduler object."""

    capture: StepCapture
    meter: MeterProcess


class _Early(NamedTuple):
    """A meter that was started before the engine it is for."""

    meter: MeterProcess
    begun_s: float


class EngineHooks:
    """Handlers of one EngineCore process, and the meters that they feed.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        self._config = config
        self.faults = faults
        self._engines: dict[int, _Engine] = {}
        self._early: _Early | None = None
        self._overhead_from_s = 0.0

    # The engine's thread: copies, nothing else.

    def after_schedule(self, scheduler: Any, output: Any, *_: Any, **__: Any) -> None:
        """``Scheduler.schedule`` planned a step."""
        engine = self._engines.get(id(scheduler))
        if engine is not None:
            engine.capture.scheduled(output, scheduler.requests)

    def before_update(self, scheduler: Any, scheduler_output: Any, *_: Any, **__: Any) -> None:
        """``Scheduler.update_from_output`` gets the result of a step."""
        engine = self._engines.get(id(scheduler))
        if engine is not None:
            engine.capture.done(scheduler_output)

    def before_free(self, scheduler: Any, request: Any, *_: Any, **__: Any) -> None:
        """``Scheduler._free_request`` ends a request."""
        engine = self._engines.get(id(scheduler))
        if engine is not None:
            engine.capture.ended(request_end(request))

    def before_overhead(self, *_: Any, **__: Any) -> None:
        """EngineCore begins work that is for no request."""
        self._overhead_from_s = time.monotonic()

    def after_overhead(self, engine_core: Any, *_: Any, **__: Any) -> None:
        """EngineCore has ended that work."""
        engine = self._engines.get(id(engine_core.scheduler))
        if engine is not None:
            engine.capture.overhead(self._overhead_from_s, time.monotonic())

    def drop(self, owner: Any, error: Exception) -> None:
        """Stop metering an engine whose internals are not what we know."""
        scheduler = getattr(owner, "scheduler", owner)
        engine = self._engines.pop(id(scheduler), None)
        if engine is not None:  # what it would book from now on is wrong; ending takes a moment
            threading.Thread(target=engine.meter.stop, name="llm-carbon-stop", daemon=True).start()
        self.faults.note(
            "engine", error, "This vLLM's internals do not fit; it is no longer metered."
        )

    # Start and stop.

    def before_executor(self, _executor: Any, vllm_config: Any, *_: Any, **__: Any) -> None:
        """The meter comes first, so that loading the model is metered too."""
        self._early = self._begin(vllm_config)

    def _begin(self, vllm_config: Any) -> _Early:
        begun_s, parallel = time.monotonic(), vllm_config.parallel_config
        place = _place(parallel)
        setup = Setup(
            config=self._config,
            engine=int(getattr(parallel, "data_parallel_index", 0) or 0),
            gpus=place.gpus,
            first_gpu=place.first,
            num_gpus=place.num_gpus,
            model=self._model(vllm_config),
            tensor_parallel=int(parallel.tensor_parallel_size),
            start_s=begun_s,
            deployment=deployment(vllm_config, self._config),
            on_cpu=on_cpu(),
            engines_here=int(getattr(parallel, "data_parallel_size_local", 1) or 1),
        )
        return _Early(MeterProcess(setup, self.faults), begun_s)

    def after_init(self, scheduler: Any, *_: Any, **__: Any) -> None:
        """The engine's scheduler is there: from now on it is metered."""
        early, self._early = self._early or self._begin(scheduler.vllm_config), None
        try:
            early.meter.ready()
        except MeterError:
            early.meter.stop()
            raise
        capture = StepCapture(self.faults)
        capture.overhead(early.begun_s, time.monotonic())
        early.meter.follow(capture)
        self._engines[id(scheduler)] = _Engine(capture, early.meter)

    def start_failed(self, _owner: Any, error: Exception) -> None:
        """Serving goes on unmetered, unless the settings are strict and the fault is theirs."""
        if self._config.strict and isinstance(error, MeterError):
            raise error
        self.faults.note("start", error, "This engine is not metered.")

    def before_shutdown(self, scheduler: Any) -> None:
        """The engine ends."""
        engine = self._engines.pop(id(scheduler), None)
        if engine is not None:
            engine.meter.stop()

    def _model(self, vllm_config: Any) -> ModelSpec | None:
        try:
            return engine_model(vllm_config)
        except SpecError as error:
            self.faults.note("model", error)
            return None


def engine_model(vllm_config: Any) -> ModelSpec:
    """The served model's shape, in the number formats that the engine runs it in.

    Raises:
        SpecError: its architecture is not known.
    """
    model = vllm_config.model_config
    cache_dtype = str(vllm_config.cache_config.cache_dtype)
    config = loaded_config(model.hf_config, model.hf_text_config, model.dtype)
    if not config.get("quantization_config") and model.quantization:  # vLLM quantises by itself
        config["quantization_config"] = {"quant_method": str(model.quantization)}
    spec = model_spec(config, str(model.served_model_name or model.model), any_format=True)
    kv_bytes = 1.0 if cache_dtype.startswith("fp8") else spec.activation_bytes
    return dataclasses.replace(spec, kv_bytes=kv_bytes, max_context=int(model.max_model_len))


class _Place(NamedTuple):
    """Where an engine's GPUs are."""

    gpus: Sequence[str]
    """NVML's identifiers, where vLLM has them."""
    first: int
    """Else the place of the first among the visible ones."""
    num_gpus: int

    def devices(self) -> Sequence[str]:
        return self.gpus or visible_devices(cuda_visible_devices(), self.first, self.num_gpus)


def _place(parallel: Any) -> _Place:
    assigned = getattr(parallel, "assigned_physical_gpu_ids", None) or ()
    count = int(parallel.world_size)
    first = int(parallel.data_parallel_rank_local or 0) * count
    return _Place([str(device) for device in assigned], first, count)


def deployment(vllm_config: Any, config: Config) -> dict[str, str | float]:
    """What a request's energy depends on beside the request, for its record."""
    from vllm.version import __version__ as version

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return {
        "engine": "vllm",
        "engine_version": str(version),
        **gpu_fields(config, _place(parallel).devices, gpu_name()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": str(model.quantization or ""),
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "tensor_parallel_size": int(parallel.tensor_parallel_size),
        "pipeline_parallel_size": int(parallel.pipeline_parallel_size),
        "max_num_batched_tokens": int(vllm_config.scheduler_config.max_num_batched_tokens),
    }


def on_cpu() -> bool:
    """Whether vLLM computes on the host's CPU."""
    from vllm.platforms import current_platform as platform

    return bool(platform.is_cpu())


def gpu_name() -> str:
    """The name of the engine's GPU as its platform gives it; empty on a host without one."""
    from vllm.platforms import current_platform as platform

    named = platform.is_cuda_alike() or platform.is_xpu()
    return str(platform.get_device_name()) if named else ""
