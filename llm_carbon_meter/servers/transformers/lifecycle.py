"""The model that a ``transformers serve`` meters, from its loading to the end of the server.

transformers loads models when they are asked for, and drops them when they were idle for a while.
The first one is metered.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.transformers.calls import watch
from llm_carbon_meter.servers.transformers.capture import BatchCapture
from llm_carbon_meter.servers.transformers.model import gpu_name, gpus_of, spec_of, visible_gpus
from llm_carbon_meter.servers.transformers.plain import PlainCalls

CACHE_PAGE_TOKENS: Final = 256
"""Of continuous batching, unless its settings say otherwise; served requests show what holds."""


class ServedModel:
    """Handlers of ``ModelManager``, and what the other handlers need of the model.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        self.config = config
        self.faults = faults
        self.capture = BatchCapture(faults)
        self.name = ""
        """Of the first model that was loaded: the one that is metered."""
        self.meter: LocalMeter | None = None
        """From the first loading to the end of the server."""
        self.processor: Any = None
        """The model's tokeniser or processor."""
        self.text_config: Any = None
        """The model's own configuration, by which its batches are known; None while it is away."""
        self.started: Callable[[], None] = _nothing
        """Called once the meter is there."""
        self._model: Callable[[], Any] = _nothing
        """A weak reference: nothing of ours keeps an idle model."""
        self._batching: Callable[[], Any] = _nothing
        """Likewise, of its continuous batching."""

    def is_metered(self, model: Any) -> bool:
        """Whether a model is the one that is metered."""
        return model is not None and model is self._model()

    def after_load(self, _models: Any, loaded: Any, name: str, *_: Any, **__: Any) -> None:
        """``ModelManager.load_model_and_processor`` has a model, from the disk or from before."""
        model, processor = loaded
        if self.is_metered(model):
            return
        name = name.partition("@")[0]
        if not self.name:
            self.name = name
            self._start(model, name, processor)
        if self.name != name:
            self.faults.note("model", f"{name} is not {self.name}, the one that is metered")
        elif self.meter is not None:  # also where it is loaded again after an idle time
            self._follow(model, processor)

    def _follow(self, model: Any, processor: Any) -> None:
        self._model, self.processor = weakref.ref(model), processor
        self.text_config = model.config.get_text_config()
        watch(model, PlainCalls(self.capture, self.faults))

    def batched_by(self, manager: Any) -> None:
        """A `ContinuousBatchingManager` has the model."""
        self._batching = weakref.ref(manager)

    def held(self) -> int:
        """Requests in the continuous batching; without it a request has the model to itself."""
        manager = self._batching()
        if manager is None:
            return 0
        coming, scheduler = int(manager.input_queue.qsize()), _scheduler_of(manager)
        if scheduler is None:
            return coming
        return coming + len(scheduler.active_requests) + len(scheduler.waiting_requests)

    def forget(self) -> None:
        """Meter the model no more."""
        self._model, self.text_config = _nothing, None

    def start_failed(self, _owner: Any, error: Exception) -> None:
        """Serving goes on unmetered, unless the settings are strict and the fault is theirs."""
        if self.config.strict and isinstance(error, MeterError):
            raise error
        self.faults.note("start", error, "This server is not metered.")

    def _start(self, model: Any, name: str, processor: Any) -> None:
        begun_s, spec = time.monotonic(), spec_of(model, name, self.faults)
        gpus = gpus_of(model)
        setup = Setup(
            config=self.config,
            engine=0,
            gpus=[],
            first_gpu=min(gpus, default=0),
            num_gpus=max(len(gpus), 1),
            model=spec,
            tensor_parallel=1,
            start_s=begun_s,
            deployment=deployment(model, gpus, self.config),
            on_cpu=not gpus,
        )
        self.meter = LocalMeter(
            setup,
            name,
            held=self.held,
            tracing=True,
            faults=self.faults,
            cache_block_tokens=CACHE_PAGE_TOKENS,
        )
        self.capture.overhead(begun_s, time.monotonic())
        self.meter.follow(self.capture)
        self.processor = processor
        self.started()

    def stop(self) -> None:
        """The server ends."""
        meter, self.meter = self.meter, None
        self.forget()
        if meter is not None:
            meter.stop()


def _scheduler_of(manager: Any) -> Any:
    """The manager's thread makes it; None before that, and after its end."""
    return getattr(manager.batch_processor, "scheduler", None)


def _nothing() -> None:
    """What a reference to no model gives."""


def deployment(model: Any, gpus: Sequence[int], config: Config) -> Mapping[str, str | float]:
    """What a request's energy depends on beside the request, for its record."""
    from transformers import __version__ as version

    dtype = str(model.dtype).removeprefix("torch.")
    quantisation = getattr(model.config, "quantization_config", None)
    return {
        "engine": "transformers",
        "engine_version": str(version),
        **gpu_fields(config, lambda: visible_gpus(gpus), gpu_name(gpus)),
        "dtype": dtype,
        "quantization": str(getattr(quantisation, "quant_method", "") or ""),
        "kv_cache_dtype": dtype,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": max(len(gpus), 1),
    }
