"""Energy and carbon of every LLM request: estimated before it runs, measured after.

vLLM finds the meter by its entry point; nothing here needs to be imported for it. The names below
are what ``--middleware llm_carbon_meter.CarbonHeadersMiddleware`` asks for, and for calls of
transformers' ``generate`` in one's own code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_carbon_meter.servers.shared.middleware import CarbonHeadersMiddleware
    from llm_carbon_meter.servers.transformers.generate import meter_generate

__all__ = ["CarbonHeadersMiddleware", "meter_generate"]
__version__ = "0.1.0"

_PLACES = {
    "CarbonHeadersMiddleware": "llm_carbon_meter.servers.shared.middleware",
    "meter_generate": "llm_carbon_meter.servers.transformers.generate",
}


def __getattr__(name: str) -> Any:
    """Load a name when it is asked for, so that importing the package costs nothing."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
