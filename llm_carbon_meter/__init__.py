"""Energy and carbon of every LLM request: estimated before it runs, measured after.

vLLM finds the meter by its entry point; nothing here needs to be imported. The name below is what
``--middleware llm_carbon_meter.CarbonHeadersMiddleware`` asks for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_carbon_meter.servers.middleware import CarbonHeadersMiddleware

__all__ = ["CarbonHeadersMiddleware"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the middleware when it is asked for, so that importing the package costs nothing."""
    if name == "CarbonHeadersMiddleware":
        from llm_carbon_meter.servers.middleware import CarbonHeadersMiddleware

        return CarbonHeadersMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
