"""The meter of an API server, with a Prometheus registry of its own."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Concurrency, Held
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_list import built_in_model


def front_end(
    deployment: Mapping[str, str | int] | None = None,
    index: int = 0,
    held: Held = lambda: 0,
    share: Callable[..., None] = lambda *_: None,
    faults: Faults | None = None,
    registry: CollectorRegistry | None = None,
    **settings: Any,
) -> FrontendMeter:
    """A meter of Llama 3.1 8B; it estimates by operations unless the settings say otherwise."""
    return FrontendMeter(
        Config(**{"estimator": "flop", **settings}),
        "llama",
        built_in_model("Llama-3.1-8B"),
        deployment=deployment or {},
        index=index,
        concurrency=Concurrency(index, held, most=None),
        tracing=False,
        share=share,
        faults=faults or Faults(),
        registry=registry or CollectorRegistry(),
    )
