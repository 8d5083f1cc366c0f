"""The configuration of a language model as an engine has loaded it."""

from typing import Any


def loaded_config(whole: Any, text: Any, dtype: Any) -> dict[str, Any]:
    """What `physics.model_specs.model_spec` reads, with the number format of this engine.

    Args:
        whole: transformers' configuration of the checkpoint.
        text: of its language model; the same one where there is nothing else in it.
        dtype: torch's, that the engine has loaded it in.
    """
    inner = {**text.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    return {**whole.to_dict(), "text_config": inner}
