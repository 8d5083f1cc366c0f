"""Every name of vLLM that is wrapped, in one table.

``python -m llm_carbon_meter.servers.vllm.hooks`` says which of them an installed vLLM lacks.
"""

from typing import Any, Final

from llm_carbon_meter.servers.shared.hooks import Hook, noting, print_fit
from llm_carbon_meter.servers.vllm.engine_hooks import EngineHooks
from llm_carbon_meter.servers.vllm.frontend_hooks import FrontendHooks

_SCHEDULER: Final = "vllm.v1.core.sched.scheduler:Scheduler"
_ENGINE_CORE: Final = "vllm.v1.engine.core:EngineCore"
_EXECUTOR: Final = "vllm.v1.executor.abstract:Executor"
_ASYNC_LLM: Final = "vllm.v1.engine.async_llm:AsyncLLM"
_OUTPUTS: Final = "vllm.v1.engine.output_processor:OutputProcessor"
_SERVE: Final = "vllm.entrypoints.serve"


def _step(
    method: str, *, before: Any = None, after: Any = None, target: str = _SCHEDULER
) -> Hook[EngineHooks]:
    """A hook on the engine's thread: where it fails, the engine is no longer metered."""
    return Hook(target, method, before=before, after=after, on_error=EngineHooks.drop)


def _overhead(method: str) -> Hook[EngineHooks]:
    """Work of the GPUs that is for no request."""
    return _step(
        method,
        before=EngineHooks.before_overhead,
        after=EngineHooks.after_overhead,
        target=_ENGINE_CORE,
    )


ENGINE_CORE: Final[tuple[Hook[EngineHooks], ...]] = (
    Hook(
        _EXECUTOR,
        "__init__",
        before=EngineHooks.before_executor,
        on_error=EngineHooks.start_failed,
    ),
    Hook(_SCHEDULER, "__init__", after=EngineHooks.after_init, on_error=EngineHooks.start_failed),
    _step("schedule", after=EngineHooks.after_schedule),
    _step("update_from_output", before=EngineHooks.before_update),
    _step("_free_request", before=EngineHooks.before_free),
    _step("shutdown", before=EngineHooks.before_shutdown),
    _overhead("execute_dummy_batch"),
    _overhead("sleep"),
    _overhead("wake_up"),
)
"""Of the process in which the scheduler runs."""

API_SERVER: Final[tuple[Hook[FrontendHooks], ...]] = (
    Hook(
        _ASYNC_LLM,
        "__init__",
        after=FrontendHooks.after_init,
        on_error=FrontendHooks.start_failed,
    ),
    Hook(_ASYNC_LLM, "shutdown", after=FrontendHooks.after_shutdown, on_error=noting("stop")),
    Hook(_OUTPUTS, "add_request", before=FrontendHooks.before_add, on_error=noting("request")),
    Hook(
        _OUTPUTS,
        "do_tracing",
        before=FrontendHooks.before_tracing,
        after=FrontendHooks.after_tracing,
        on_error=noting("spans"),
    ),
    Hook(
        _SERVE,
        "register_vllm_serve_api_routers",
        after=FrontendHooks.after_register,
        on_error=FrontendHooks.routes_failed,
    ),
)
"""Of the process in which requests are answered."""

HOOKS: Final[tuple[Hook[Any], ...]] = (*ENGINE_CORE, *API_SERVER)


if __name__ == "__main__":
    print_fit("vllm", HOOKS)
