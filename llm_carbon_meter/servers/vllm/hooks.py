"""Every name of vLLM that is wrapped, in one table.

``python -m llm_carbon_meter.servers.vllm.hooks`` says which of them an installed vLLM lacks.
"""

from typing import Final

from llm_carbon_meter.servers.shared.hooks import (
    HookTable,
    load,
    print_fit,
)

HOOKED: Final[HookTable] = {
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "__init__",
        "schedule",
        "update_from_output",
        "_free_request",
        "shutdown",
    ),
    "vllm.v1.engine.core:EngineCore": ("execute_dummy_batch", "sleep", "wake_up"),
    "vllm.v1.executor.abstract:Executor": ("__init__",),
    "vllm.v1.engine.async_llm:AsyncLLM": ("__init__", "shutdown"),
    "vllm.v1.engine.output_processor:OutputProcessor": ("add_request", "do_tracing"),
    "vllm.entrypoints.serve": ("register_vllm_serve_api_routers",),
}


if __name__ == "__main__":
    print_fit("vllm", load(HOOKED)[1])
