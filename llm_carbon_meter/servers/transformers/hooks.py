"""Every name of transformers' server that is wrapped, and whether an installed version fits.

``python -m llm_carbon_meter.servers.transformers.hooks`` says what it lacks.
"""

from typing import Any, Final

from llm_carbon_meter.servers.shared.hooks import (
    HookTable,
    load,
    print_fit,
)

_BATCHING: Final = "transformers.generation.continuous_batching"
HOOKED: Final[HookTable] = {
    f"{_BATCHING}.continuous_api:ContinuousBatchProcessor": ("prepare_next_batch", "update_batch"),
    f"{_BATCHING}.continuous_api:ContinuousBatchingManager": ("add_request",),
    f"{_BATCHING}.input_outputs:ContinuousBatchingIOs": ("prepare_batch_update",),
    f"{_BATCHING}.scheduler:Scheduler": ("finish_request", "clear_cancelled_requests"),
    "transformers.cli.serving.utils:GenerateManager": (
        "generate_streaming",
        "generate_non_streaming",
    ),
    "transformers.cli.serving.utils:CBGenerateManager": ("init_cb",),
    "transformers.cli.serving.utils:InferenceThread": ("submit", "async_submit"),
    "transformers.cli.serving.model_manager:ModelManager": ("load_model_and_processor",),
    "transformers.cli.serving.server": ("build_server",),
}
NEEDED: Final[HookTable] = {f"{_BATCHING}.requests:FutureRequestState": ("query_length",)}
"""Looked at, not wrapped; transformers has it since 5.6."""


def fitting() -> tuple[list[Any], list[str]]:
    """The classes and the module to wrap, and what this transformers lacks."""
    owners, missing = load(HOOKED)
    return owners, missing + load(NEEDED)[1]


if __name__ == "__main__":
    print_fit("transformers", fitting()[1])
