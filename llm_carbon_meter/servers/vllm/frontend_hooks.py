"""Hooks into vLLM's API server process: estimates, ids, routes and spans.

Of the names wrapped (hooks.py), OutputProcessor.add_request sees every engine request with its
internal id before it is sent, children of n > 1 included, and register_vllm_serve_api_routers the
application before its middleware.
"""

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange, current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.records import MeterError, SpecError
from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.shared.middleware import ExchangeMiddleware
from llm_carbon_meter.servers.shared.routes import RefusedError, prompt_lengths
from llm_carbon_meter.servers.shared.wrapping import OnError, wrap
from llm_carbon_meter.servers.vllm.engine_hooks import deployment, engine_model

_traced_request: ContextVar[str | None] = ContextVar("llm_carbon_traced_request", default=None)


class FrontendHooks:
    """The wrappers of one API server process, and the meter that they feed.

    Args:
        config: settings.
        faults: counts of what went wrong in this process.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        self._config = config
        self._faults = faults
        self._server: ApiServer | None = None

    def install(self, async_llm: type, output_processor: type, serve: Any) -> None:
        """Wrap vLLM's classes; nothing starts until an `AsyncLLM` is made.

        Raises:
            AttributeError: a name to wrap does not exist in this vLLM.
        """
        register = serve.register_vllm_serve_api_routers
        wrap(async_llm, "__init__", after=self._after_init, on_error=self._start_failed)
        wrap(async_llm, "shutdown", after=self._after_shutdown, on_error=self._note("stop"))
        wrap(
            output_processor, "add_request", before=self._before_add, on_error=self._note("request")
        )
        wrap(
            output_processor,
            "do_tracing",
            before=self._before_tracing,
            after=self._after_tracing,
            on_error=self._note("spans"),
        )

        @functools.wraps(register)
        def register_with_ours(app: Any) -> None:
            register(app)
            self._attach(app)

        serve.register_vllm_serve_api_routers = register_with_ours

    def _note(self, where: str) -> OnError:
        return lambda _owner, error: self._faults.note(where, error)

    # Start and stop

    def _after_init(self, async_llm: Any, *_: Any, **named: Any) -> None:
        index, count = int(named.get("client_index", 0)), int(named.get("client_count", 1))
        self._start(async_llm.vllm_config, index, count)

    def _start_failed(self, _owner: Any, error: Exception) -> None:
        if self._config.strict and isinstance(error, MeterError):
            raise error
        self._faults.note("start", error, "This server's figures are missing or incomplete.")

    def _start(self, vllm_config: Any, index: int, count: int) -> None:
        tracing = vllm_config.observability_config.otlp_traces_endpoint is not None
        self._server = ApiServer(
            self._config,
            str(vllm_config.model_config.served_model_name),
            self._model(vllm_config),
            deployment(vllm_config),
            num_engines=vllm_config.parallel_config.data_parallel_size,
            index=index,
            count=count,
            tracing=tracing,
            faults=self._faults,
        )
        if tracing:
            self._add_span_processor()
        self._server.connect()

    def _model(self, vllm_config: Any) -> Any:
        try:
            return engine_model(vllm_config)
        except SpecError as error:
            self._faults.note("model", error, "Requests have no estimate.")
            return None

    def _after_shutdown(self, *_: Any, **__: Any) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    # Requests

    def _before_add(self, processor: Any, request: Any, *_: Any, **__: Any) -> None:
        # A request that is known already is a session's next turn.
        if self._server is not None and request.request_id not in processor.request_states:
            _begin(self._server.meter, request)

    # The application

    def _attach(self, app: Any) -> None:
        if self._server is None:
            return
        try:
            app.add_middleware(ExchangeMiddleware)
            self._server.attach(app, count_tokens)
        except Exception as error:  # noqa: BLE001 - boundary: the server starts without us
            self._faults.note("routes", error, "/v1/carbon is not served.")

    # Spans

    def _before_tracing(self, _processor: Any, _output: Any, state: Any, *_: Any) -> None:
        _traced_request.set(state.request_id)

    def _after_tracing(self, *_: Any, **__: Any) -> None:
        _traced_request.set(None)

    def _add_span_processor(self) -> None:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        add = getattr(provider, "add_span_processor", None)
        if add is None:
            self._faults.note("spans", "the tracer provider takes no span processors")
        else:
            add(_span_processor(self))

    def on_request_span(self, span: Any) -> None:
        """vLLM made the span of a request: add the estimate, remember it as parent."""
        request_id, server = _traced_request.get(), self._server
        if request_id is None or server is None or server.meter.spans is None:
            return
        meter, spans = server.meter, server.meter.spans
        exchanges = meter.exchanges.find(request_id)
        member = exchanges[0].members.get(request_id) if exchanges else None
        if member is not None:
            span.set_attributes(spans.attributes(member.energy, member.estimate))
        spans.parent(request_id, span.get_span_context(), span.start_time)


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
    tokens = request.prompt_token_ids
    prompt_tokens = len(tokens) if tokens is not None else len(request.prompt_embeds)
    sampling = request.sampling_params
    meter.begin(
        exchange,
        request.request_id,
        request.external_req_id or request.request_id,
        prompt_tokens,
        sampling.max_tokens if sampling is not None else 0,
    )
    if alone:  # no HTTP around it: nothing more can come
        meter.end(exchange, answered=False)


async def count_tokens(request: Any, body: Mapping[str, Any]) -> list[int]:
    """Prompt lengths of a chat or completion body, by the server's own tokeniser."""
    return await prompt_lengths(body, functools.partial(_tokenize, request))


async def _tokenize(request: Any, body: Mapping[str, Any]) -> int:
    from pydantic import TypeAdapter, ValidationError
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest

    serving = request.app.state.serving_tokenization
    try:
        query = TypeAdapter(TokenizeRequest).validate_python(dict(body))
    except ValidationError as error:
        raise RefusedError(400, f"the body does not fit: {error.errors()[0]['msg']}") from error
    answer = await serving.create_tokenize(query, request)
    if not hasattr(answer, "count"):
        raise RefusedError(400, str(answer.error.message))
    return int(answer.count)
