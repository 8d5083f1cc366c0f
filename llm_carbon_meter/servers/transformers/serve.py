"""Hooks into ``transformers serve``: one process with HTTP, continuous batching and our meter's
two ends; what they feed is the same as for vLLM.

transformers has no way to load a plugin: `serve` wraps its classes and then calls its own command;
instrumentor.py wraps them where OpenTelemetry starts that command.
"""

import contextlib
import contextvars
import functools
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.otel import SpanExporter
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Member, current_exchange
from llm_carbon_meter.records import ConfigError, MeterError
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.middleware import CarbonHeadersMiddleware, UniqueIdMiddleware
from llm_carbon_meter.servers.shared.routes import metrics, prompt_lengths
from llm_carbon_meter.servers.shared.settings import read_settings
from llm_carbon_meter.servers.shared.wrapping import OnError, wrap
from llm_carbon_meter.servers.transformers.calls import watch
from llm_carbon_meter.servers.transformers.capture import BatchCapture
from llm_carbon_meter.servers.transformers.hooks import fitting
from llm_carbon_meter.servers.transformers.model import (
    gpu_name,
    gpus_of,
    spec_of,
)
from llm_carbon_meter.servers.transformers.plain import PlainCalls, current_request

PREPARING: Final = "preparing"
UPDATING: Final = "updating"

_installed = False


def serve(arguments: Sequence[str]) -> int:
    """Run ``transformers serve`` with these arguments, metered.

    Raises:
        MeterError: transformers is not installed or has no such command.
        ConfigError: it does not fit, or a setting is wrong, and the settings are strict.
    """
    try:
        from transformers.cli.transformers import main
    except ImportError as error:
        raise MeterError(
            f"this transformers cannot serve ({error}): "
            "pip install 'transformers[serving]>=5.6' where torch is installed already"
        ) from error
    install()
    sys.argv = ["transformers", "serve", *arguments]
    main()
    return 0


def install() -> None:
    """Wrap transformers' classes, once; where they do not fit, say so and leave them alone.

    Raises:
        ConfigError: they do not fit, or a setting is wrong, and the settings are strict.
    """
    global _installed
    if _installed:
        return
    faults = Faults()
    config = read_settings(faults)
    if not config.enabled:
        return
    owners, missing = fitting()
    if not missing:
        ServeHooks(config, faults).install(*owners)
        _installed = True
        return
    error = ConfigError(
        f"this transformers does not fit: it has no {', no '.join(missing)}; 5.6 is the oldest "
        "that can be metered"
    )
    if config.strict:
        raise error
    faults.note("install", error, "Nothing is metered.")


class ServeHooks:
    """The wrappers of one ``transformers serve``, and the meter that they feed.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        self._config = config
        self._faults = faults
        self._app: Any = None
        self._name = ""
        """Of the first model that was loaded: the one that is metered."""
        self._model: Callable[[], Any] = _nothing
        """It, while it is loaded: nothing of ours keeps an idle model."""
        self._text_config: Any = None
        """Its own, by which its batches are known."""
        self._scheduler: Any = None
        self._capture = BatchCapture(faults)
        self._meter: LocalMeter | None = None
        self._doing = ""
        """What the batching's thread is inside of."""
        self._cancelling: Sequence[Any] = ()
        """Requests whose clients have left, before the scheduler forgets them."""

    def install(
        self,
        processor: type,
        manager: type,
        outputs: type,
        scheduler: type,
        plain: type,
        batching: type,
        thread: type,
        models: type,
        server: Any,
    ) -> None:
        """Wrap; nothing starts until a model is loaded.

        Raises:
            AttributeError: a name does not exist; `transformers_hooks.fitting` says so before.
        """
        drop = self._drop
        wrap(
            processor,
            "prepare_next_batch",
            before=self._before_prepare,
            after=self._after_prepare,
            on_error=drop,
        )
        wrap(
            processor,
            "update_batch",
            before=self._before_update,
            after=self._after_update,
            on_error=drop,
        )
        wrap(outputs, "prepare_batch_update", after=self._after_outputs, on_error=drop)
        wrap(scheduler, "finish_request", before=self._before_finish, on_error=drop)
        wrap(
            scheduler,
            "clear_cancelled_requests",
            before=self._before_cancel,
            after=self._after_cancel,
            on_error=drop,
        )
        wrap(manager, "add_request", before=self._before_add, on_error=self._note("request"))
        wrap(
            models,
            "load_model_and_processor",
            after=self._after_load,
            on_error=self._start_failed,
        )
        for name in ("generate_streaming", "generate_non_streaming"):
            wrap(plain, name, before=self._before_plain, on_error=self._note("request"))
        wrap(batching, "init_cb", failed=self._cannot_batch, on_error=self._note("request"))
        for name in ("submit", "async_submit"):
            setattr(thread, name, _in_context(getattr(thread, name)))
        build = server.build_server

        @functools.wraps(build)
        def build_with_ours(*arguments: Any, **named: Any) -> Any:
            app = build(*arguments, **named)
            try:
                self._dress(app)
            except Exception as error:  # noqa: BLE001 - boundary: the server starts without us
                self._faults.note("routes", error, "There are no headers, and no /v1/carbon.")
            return app

        server.build_server = build_with_ours

    def _note(self, where: str) -> OnError:
        return lambda _owner, error: self._faults.note(where, error)

    # The batching's thread: copies, nothing else.

    def _metered(self, processor: Any) -> bool:
        return self._text_config is not None and processor.config is self._text_config

    def _before_prepare(self, processor: Any) -> None:
        self._doing = ""
        if self._metered(processor):
            self._doing, self._scheduler = PREPARING, processor.scheduler

    def _after_prepare(self, processor: Any, found: bool) -> None:
        doing, self._doing = self._doing, ""
        if not doing:
            return
        outputs = processor.inputs_and_outputs
        pairs = getattr(outputs, "io_pairs", None)
        if found:
            host = outputs if pairs is None else pairs[outputs.current_pair].host_io
            self._capture.scheduled(host.requests_in_batch)
        else:  # of two batches that take turns the last one is updated when the next one comes
            for pair in pairs or ():
                pair.d2h_over.synchronize()
                self._capture.done(pair.host_io.requests_in_batch)

    def _before_update(self, processor: Any) -> None:
        self._doing = UPDATING if self._metered(processor) else ""

    def _after_update(self, _processor: Any, _: None) -> None:
        self._doing = ""

    def _after_outputs(self, _outputs: Any, found: Sequence[Any]) -> None:
        if self._doing == UPDATING:
            self._capture.done(found[0])

    def _before_finish(self, scheduler: Any, request_id: str) -> None:
        # Inside prepare it is a request that makes room and comes again.
        if scheduler is not self._scheduler or self._doing == PREPARING:
            return
        state = scheduler.active_requests.get(request_id)
        if state is not None:
            self._capture.finished(state, cancelled=False)

    def _before_cancel(self, scheduler: Any) -> None:
        if scheduler is self._scheduler:
            self._cancelling = _to_cancel(scheduler)

    def _after_cancel(self, scheduler: Any, states: Sequence[Any] | None) -> None:
        if scheduler is not self._scheduler:
            return
        seen, self._cancelling = self._cancelling, ()
        # The oldest versions do not return them.
        for state in seen if states is None else states:
            self._capture.finished(state, cancelled=True)

    def _drop(self, _owner: Any, error: Exception) -> None:
        """Stop metering a server whose internals are not what we know."""
        self._forget()
        self._faults.note(
            "engine", error, "This transformers' internals do not fit; it is no longer metered."
        )

    def _cannot_batch(self, _manager: Any, error: Exception, *_: Any) -> None:
        """The client gets transformers' own answer, which says nothing."""
        self._faults.note(
            "batching",
            error,
            f"transformers cannot batch {self._name} continuously: serve it without "
            "--continuous-batching, it is metered then too.",
        )

    # Start and stop

    def _after_load(self, _models: Any, loaded: Any, name: str, *_: Any, **__: Any) -> None:
        model, processor = loaded
        if model is self._model():
            return
        name = name.partition("@")[0]
        if not self._name:
            self._name = name
            self._start(model, name, processor)
        if self._name != name:
            self._faults.note("model", f"{name} is not {self._name}, the one that is metered")
        elif self._meter is not None:  # also where it is loaded again after an idle time
            self._follow(model, processor)

    def _follow(self, model: Any, processor: Any) -> None:
        self._model, self._processor = weakref.ref(model), processor
        self._text_config = model.config.get_text_config()
        watch(model, PlainCalls(self._capture, self._faults))

    def _forget(self) -> None:
        self._model, self._text_config, self._scheduler = _nothing, None, None

    def _start_failed(self, _owner: Any, error: Exception) -> None:
        if self._config.strict and isinstance(error, MeterError):
            raise error
        self._faults.note("start", error, "This server is not metered.")

    def _start(self, model: Any, name: str, processor: Any) -> None:
        begun_s, spec = time.monotonic(), spec_of(model, name, self._faults)
        gpus = gpus_of(model)
        setup = Setup(
            config=self._config,
            engine=0,
            gpus=[],
            first_gpu=min(gpus, default=0),
            num_gpus=max(len(gpus), 1),
            gpu_name=gpu_name(gpus),
            model=spec,
            tensor_parallel=1,
            start_s=begun_s,
        )
        self._meter = LocalMeter(
            setup, name, deployment(model, gpus), tracing=True, faults=self._faults
        )
        self._capture.overhead(begun_s, time.monotonic())
        self._meter.follow(self._capture)
        self._processor = processor
        self._attach()

    def _stop(self) -> None:
        meter, self._meter = self._meter, None
        self._forget()
        if meter is not None:
            meter.stop()

    # The application

    def _dress(self, app: Any) -> None:
        """Put our middleware around an application, and our end into its own."""
        self._app, original = app, app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def lifespan(whole: Any) -> AsyncIterator[Any]:
            try:
                async with original(whole) as state:
                    yield state
            finally:
                self._stop()

        app.router.lifespan_context = lifespan
        app.add_middleware(CarbonHeadersMiddleware)
        app.add_middleware(UniqueIdMiddleware)
        self._attach()

    def _attach(self) -> None:
        """Whichever comes second, the application or the model, brings them together."""
        if self._app is None or self._meter is None:
            return
        self._meter.server.attach(self._app, self._count_tokens)
        self._app.router.add_route("/metrics", metrics, ["GET"])

    async def _count_tokens(self, _request: Any, body: Mapping[str, Any]) -> list[int]:
        processor = self._processor
        tokenizer = getattr(processor, "tokenizer", processor)

        async def count(one: Mapping[str, Any]) -> int:
            if "messages" not in one:
                return len(tokenizer(one["prompt"])["input_ids"])
            tools, messages = one.get("tools"), one["messages"]
            text = tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False
            )
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        return await prompt_lengths(body, count)

    # Requests

    def _before_add(
        self,
        manager: Any,
        input_ids: Sequence[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        if request_id is not None and manager.model is self._model():
            self._begin(request_id, len(input_ids), max_new_tokens)

    def _before_plain(
        self,
        _manager: Any,
        model: Any,
        _processor: Any,
        inputs: Mapping[str, Any],
        settings: Any,
        request_id: str,
        *_: Any,
        **__: Any,
    ) -> None:
        if model is self._model():
            current_request.set(request_id)
            self._begin(request_id, int(inputs["input_ids"].shape[-1]), settings.max_new_tokens)

    def _begin(self, request_id: str, prompt_tokens: int, max_tokens: int | None) -> None:
        exchange = current_exchange.get()
        if self._meter is None or exchange is None:
            return
        frontend = self._meter.server.meter
        frontend.begin(exchange, request_id, request_id, prompt_tokens, max_tokens)
        member = exchange.members.get(request_id)
        if frontend.spans is not None and member is not None:
            _trace(frontend.spans, member)


def _trace(spans: SpanExporter, member: Member) -> None:
    """FastAPI, or its instrumentation, has made the span of the exchange."""
    from opentelemetry import trace

    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(spans.attributes(member.energy, member.estimate))
        started_ns = getattr(span, "start_time", None) or time.time_ns()
        spans.parent(member.internal_id, span.get_span_context(), started_ns)


def _nothing() -> None:
    """What a reference to no model gives."""


def _to_cancel(scheduler: Any) -> list[Any]:
    """The requests that a scheduler is about to drop."""
    queues = scheduler.active_requests, scheduler.waiting_requests
    names = list(getattr(scheduler, "_requests_to_cancel", ()))
    return [queue[name] for queue in queues for name in names if name in queue]


def _in_context(submit: Callable[..., Any]) -> Callable[..., Any]:
    """A job of the inference thread knows whose it is: it runs in the context that it came from."""

    @functools.wraps(submit)
    def submit_in_context(thread: Any, job: Any, *arguments: Any, **named: Any) -> Any:
        return submit(thread, contextvars.copy_context().run, job, *arguments, **named)

    return submit_in_context


def deployment(model: Any, gpus: Sequence[int]) -> dict[str, str | int]:
    """What a request's energy depends on beside the request, for its record."""
    from transformers import __version__ as version

    dtype = str(model.dtype).removeprefix("torch.")
    quantisation = getattr(model.config, "quantization_config", None)
    return {
        "engine": "transformers",
        "engine_version": str(version),
        "gpu": gpu_name(gpus),
        "dtype": dtype,
        "quantization": str(getattr(quantisation, "quant_method", "") or ""),
        "kv_cache_dtype": dtype,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": max(len(gpus), 1),
    }
