"""One API server's meter, joined to the engines and to other API servers by the channel."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Concurrency, Held
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.records import EngineLoad, EngineTotals, RequestEnergy, RequestRecord
from llm_carbon_meter.servers.shared.channel import (
    Message,
    Publisher,
    SharedRecord,
    Subscriber,
    engine_name,
    frontend_name,
    sweep,
)
from llm_carbon_meter.servers.shared.middleware import STATE_NAME
from llm_carbon_meter.servers.shared.routes import CarbonRoutes, ReadPrompts, Served

RECORD_PATH: Final = "/v1/carbon/requests/{request_id:path}"
ESTIMATE_PATH: Final = "/v1/carbon/estimate"
LAST_WORDS_S: Final = 3.0
"""After the engines have ended, at most, for what they publish last."""
LISTEN_S: Final = 0.05


class ApiServer:
    """A `FrontendMeter` that hears and is heard.

    Args:
        config: settings.
        model_name: as clients know it.
        model: shape for the estimate; None where the architecture is not known.
        deployment: engine, version, GPU, number formats and parallelism.
        num_engines: that publish on the channel.
        index: of this API server.
        count: of all of them.
        held: gives how many of this API server's requests the engines hold.
        most: requests that an engine batches at once; None where nobody knows.
        tracing: whether the server makes spans.
        faults: counts of what went wrong in this process.
        cache_block_tokens: of the engines' prefix cache; 0 where they have none.
        models: all that the server has, by name, where it has several; shapes as of `model`.
    """

    def __init__(
        self,
        config: Config,
        model_name: str,
        model: ModelSpec | None,
        deployment: Mapping[str, str | float],
        *,
        num_engines: int,
        index: int,
        count: int,
        held: Held,
        most: int | None,
        tracing: bool,
        faults: Faults,
        cache_block_tokens: int = 0,
        models: Mapping[str, ModelSpec | None] = MappingProxyType({}),
    ) -> None:
        self._index = index
        self._directory = config.channel_dir
        self._engines = list(map(engine_name, range(num_engines)))
        concurrency = Concurrency(index, held, most)
        self.meter = FrontendMeter(
            config,
            model_name,
            model,
            deployment,
            index,
            concurrency,
            tracing,
            self._share if count > 1 else None,
            faults,
            cache_block_tokens=cache_block_tokens,
            models=models,
        )
        self._others = [frontend_name(other) for other in range(count) if other != index]
        self._publisher: Publisher | None = None
        self._subscriber: Subscriber | None = None
        self._faults = faults

    def connect(self) -> None:
        """Hear the engines and the other servers from now on; estimates need neither.

        Raises:
            MeterError: the channel cannot be bound.
        """
        self._publisher = Publisher(self._directory, frontend_name(self._index), self._faults)
        self._subscriber = Subscriber(
            self._directory, self._engines + self._others, self._receive, self._faults
        )

    def _share(self, record: RequestRecord) -> None:
        if self._publisher is not None:
            self._publisher.publish([SharedRecord(self._index, record)])

    def _receive(self, messages: Sequence[Message]) -> None:
        """Messages that came together; what one of them does to us is no other's business."""
        energies = [message for message in messages if isinstance(message, RequestEnergy)]
        if energies:
            self._faults.attempt("channel", self.meter.receive_energies, energies)
        for message in messages:
            match message:
                case EngineTotals():
                    self._faults.attempt("channel", self.meter.receive_totals, message)
                case EngineLoad():
                    self._faults.attempt("channel", self.meter.receive_load, message)
                case SharedRecord():
                    self._faults.attempt("channel", self.meter.receive_record, message.record)

    def attach(self, app: Any, read_prompts: ReadPrompts, served: Served) -> None:
        """Give a Starlette application the meter, for its middleware, and our routes.

        Args:
            app: of the server.
            read_prompts: tokenises a body as the server would.
            served: the models that may be asked for.
        """
        setattr(app.state, STATE_NAME, self.meter)
        routes = CarbonRoutes(self.meter, read_prompts, served)
        if hasattr(app, "add_api_route"):  # FastAPI describes its routes
            from llm_carbon_meter.servers.shared import openapi

            app.add_api_route(RECORD_PATH, routes.request, methods=["GET"], **openapi.RECORD)
            app.add_api_route(ESTIMATE_PATH, routes.estimate, methods=["POST"], **openapi.ESTIMATE)
        else:
            app.router.add_route(RECORD_PATH, routes.request, ["GET"])
            app.router.add_route(ESTIMATE_PATH, routes.estimate, ["POST"])

    def stop(self) -> None:
        """Hear what the engines said last, and close."""
        if self._subscriber is not None:
            until_s = time.monotonic() + LAST_WORDS_S
            while self.meter.is_waiting and time.monotonic() < until_s:
                time.sleep(LISTEN_S)
            self._subscriber.close()
        if self._publisher is not None:
            self._publisher.close()
            # Engines that were killed leave their sockets.
            sweep(self._directory, self._engines)
        self.meter.stop()
