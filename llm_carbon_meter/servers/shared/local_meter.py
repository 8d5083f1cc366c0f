"""The meter of a server that has one process: both of its ends.

vLLM has them apart: vllm/engine_hooks.py has the engine's, vllm/frontend_hooks.py the API servers'.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Held
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.shared.events import EventQueue
from llm_carbon_meter.servers.shared.meter_process import MeterProcess, Setup


class LocalMeter:
    """A meter's process and the API server that hears it.

    Args:
        setup: of the process; has the settings, the model and the deployment.
        model_name: as clients know it.
        held: gives how many requests share the engine's batches or are about to.
        tracing: whether the server makes spans.
        faults: counts of what went wrong in this process.
        cache_block_tokens: of the engine's prefix cache; 0 where it has none.
        models: all that the server has, by name, where it has several; None without a shape.

    Raises:
        MeterError: the power source or the channel cannot be opened.
    """

    def __init__(
        self,
        setup: Setup,
        model_name: str,
        *,
        held: Held,
        tracing: bool,
        faults: Faults,
        cache_block_tokens: int = 0,
        models: Mapping[str, ModelSpec | None] = MappingProxyType({}),
    ) -> None:
        self._engine = MeterProcess(setup, faults)
        with ExitStack() as undo:
            undo.callback(self._engine.stop)
            self.server = ApiServer(
                setup.config,
                model_name,
                setup.model,
                setup.deployment,
                num_engines=1,
                index=0,
                count=1,
                held=held,
                most=None,
                tracing=tracing,
                faults=faults,
                cache_block_tokens=cache_block_tokens,
                models=models,
            )
            undo.callback(self.server.stop)
            self._engine.ready()
            self.server.connect()
            undo.pop_all()

    def follow(self, capture: EventQueue) -> None:
        """Tell the meter what a capture holds from now on."""
        self._engine.follow(capture)

    def stop(self) -> None:
        """Settle the last tick, hear of it, and close."""
        self._engine.stop()
        self.server.stop()
