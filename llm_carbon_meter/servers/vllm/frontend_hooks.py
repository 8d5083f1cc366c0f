"""What is called around the methods of vLLM's API server process that hooks.py lists.

OutputProcessor.add_request sees every engine request with its internal id before it is sent,
children of n > 1 included.
"""

import functools
from collections.abc import Hashable, Mapping
from contextvars import ContextVar
from typing import Any

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange, bounded_id, current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import MeterError, SpecError
from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.shared.middleware import ExchangeMiddleware
from llm_carbon_meter.servers.shared.routes import RefusedError, ServedModels, prompts_of
from llm_carbon_meter.servers.vllm.engine_hooks import deployment, engine_model

_traced_request: ContextVar[str | None] = ContextVar("llm_carbon_traced_request", default=None)


class FrontendHooks:
    """Handlers of one API server process, and the meter that they feed.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        self._config = config
        self.faults = faults
        self._server: ApiServer | None = None

    # Start and stop

    def after_init(self, async_llm: Any, *_: Any, **named: Any) -> None:
        """``AsyncLLM`` was made: this process is an API server."""
        index, count = int(named.get("client_index", 0)), int(named.get("client_count", 1))
        self._start(async_llm.vllm_config, index, count, async_llm.output_processor)

    def start_failed(self, _owner: Any, error: Exception) -> None:
        """Serving goes on, unless the settings are strict and the fault is theirs."""
        if self._config.strict and isinstance(error, MeterError):
            raise error
        self.faults.note("start", error, "This server's figures are missing or incomplete.")

    def _start(self, vllm_config: Any, index: int, count: int, processor: Any) -> None:
        tracing = vllm_config.observability_config.otlp_traces_endpoint is not None
        self._server = ApiServer(
            self._config,
            str(vllm_config.model_config.served_model_name),
            self._model(vllm_config),
            deployment(vllm_config, self._config),
            num_engines=vllm_config.parallel_config.data_parallel_size,
            index=index,
            count=count,
            # vLLM forgets a request before its last output leaves, and when it is aborted.
            held=lambda: len(processor.request_states),
            most=int(vllm_config.scheduler_config.max_num_seqs),
            tracing=tracing,
            faults=self.faults,
            cache_block_tokens=_cache_block_tokens(vllm_config),
        )
        if tracing:
            self._add_span_processor()
        self._server.connect()

    def _model(self, vllm_config: Any) -> Any:
        try:
            return engine_model(vllm_config)
        except SpecError as error:
            self.faults.note("model", error, "Requests have no estimate.")
            return None

    def after_shutdown(self, *_: Any, **__: Any) -> None:
        """The server ends."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    # Requests

    def before_add(self, processor: Any, request: Any, *_: Any, **__: Any) -> None:
        """An engine request is about to be sent."""
        # A request that is known already is a session's next turn.
        if self._server is not None and request.request_id not in processor.request_states:
            _begin(self._server.meter, request)

    # The application

    def after_register(self, _serve: Any, _result: None, app: Any) -> None:
        """``register_vllm_serve_api_routers`` dresses the application, before its middleware."""
        if self._server is not None:
            app.add_middleware(ExchangeMiddleware)
            self._server.attach(app, read_prompts, served_models)

    def routes_failed(self, _serve: Any, error: Exception) -> None:
        """The server starts without our routes."""
        self.faults.note("routes", error, "/v1/carbon is not served.")

    # Spans

    def before_tracing(self, _processor: Any, _output: Any, state: Any, *_: Any) -> None:
        """The spans made from here on are of this request."""
        _traced_request.set(state.request_id)

    def after_tracing(self, *_: Any, **__: Any) -> None:
        """The spans made from here on are of no request."""
        _traced_request.set(None)

    def _add_span_processor(self) -> None:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        add = getattr(provider, "add_span_processor", None)
        if add is None:
            self.faults.note("spans", "the tracer provider takes no span processors")
        else:
            add(_span_processor(self))

    def on_request_span(self, span: Any) -> None:
        """vLLM made the span of a request: add the estimate, remember it as parent."""
        request_id, server = _traced_request.get(), self._server
        if request_id is None or server is None or server.meter.spans is None:
            return
        member, spans = server.meter.member(request_id), server.meter.spans
        if member is not None:
            known = spans.attributes(member.energy, member.estimate, member.whose)
            span.set_attributes(known)
        spans.parent(bounded_id(request_id), span.get_span_context(), span.start_time)


def _span_processor(hooks: FrontendHooks) -> Any:
    from opentelemetry.sdk.trace import SpanProcessor

    class RequestSpans(SpanProcessor):
        """Sees vLLM's ``llm_request`` spans start."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            """Only spans made inside ``do_tracing`` are of a request."""
            hooks.on_request_span(span)

    return RequestSpans()


def _begin(meter: FrontendMeter, request: Any) -> None:
    exchange = current_exchange.get()
    alone = exchange is None
    exchange = exchange or Exchange()
    sampling = request.sampling_params
    meter.begin(
        exchange,
        request.request_id,
        request.external_req_id or request.request_id,
        prompt_of(request),
        sampling.max_tokens if sampling is not None else 0,
    )
    if alone:  # no HTTP around it: nothing more can come
        meter.end(exchange, answered=False)


def prompt_of(request: Any) -> Prompt:
    """Of an `EngineCoreRequest`; images and audio stand in it as their tokens."""
    tokens, adapter, inputs = request.prompt_token_ids, request.lora_request, request.mm_features
    remarks = (
        f"adapter {adapter.lora_name} not measured" if adapter is not None else "",
        "encoding of images or audio left out" if inputs else "",
    )
    return Prompt(
        len(tokens) if tokens is not None else len(request.prompt_embeds),
        tokens if request.prompt_embeds is None else None,
        _cache_key(request),
        "; ".join(filter(None, remarks)),
        adapter.lora_name if adapter is not None else "",
    )


def _cache_key(request: Any) -> Hashable:
    """What vLLM puts into the hashes of its blocks beside tokens; None for nothing."""
    adapter, inputs = request.lora_request, request.mm_features or ()
    images = tuple(item.identifier for item in inputs)
    beside = (adapter.lora_name if adapter is not None else None, request.cache_salt, images)
    return beside if any(beside) else None


def _cache_block_tokens(vllm_config: Any) -> int:
    cache = vllm_config.cache_config
    return int(cache.block_size or 0) if cache.enable_prefix_caching else 0


async def read_prompts(request: Any, body: Mapping[str, Any]) -> list[Prompt]:
    """Prompts of a chat or completion body, by the server's own tokeniser."""
    return await prompts_of(body, functools.partial(_tokenize, request))


def served_models(request: Any) -> ServedModels:
    """The model and its adapters; nothing where adapters are looked for on demand."""
    models = request.app.state.openai_serving_models
    if models.lora_resolvers:
        return ServedModels()
    return ServedModels([path.name for path in models.base_model_paths], models.lora_requests)


async def _tokenize(request: Any, body: Mapping[str, Any]) -> Prompt:
    from pydantic import ValidationError

    serving = request.app.state.serving_tokenization
    try:
        query = _tokenize_bodies().validate_python(dict(body))
    except ValidationError as error:
        raise RefusedError(400, f"the body does not fit: {error.errors()[0]['msg']}") from error
    answer = await serving.create_tokenize(query, request)
    if not hasattr(answer, "count"):
        raise RefusedError(400, str(answer.error.message))
    return Prompt(int(answer.count), answer.tokens)


@functools.cache
def _tokenize_bodies() -> Any:
    """Checks bodies. A query's tool calls are checked as they are read, so this must outlive it."""
    from pydantic import TypeAdapter
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest

    return TypeAdapter(TokenizeRequest)
