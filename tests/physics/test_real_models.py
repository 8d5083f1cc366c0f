"""Listed models against transformers' own code, in full size on PyTorch's meta device."""

from typing import Any

import pytest

from llm_carbon_meter.physics.model_list import built_in_config, built_in_model, built_in_names

pytestmark = pytest.mark.slow

OWN_CODE = frozenset(("kimi_k2", "mimo", "minimax_m3", "step3p5", "chameleon"))
"""Model types that transformers has no text model of."""
BEYOND = frozenset(("Kimi-K3",))
"""Models that go beyond what transformers has of their type."""


def one_of_each_type() -> list[str]:
    """The first listed model of every ``model_type``."""
    found: dict[str, str] = {}
    for name in built_in_names():
        kind = built_in_config(name)["model_type"]
        if kind not in OWN_CODE and name not in BEYOND:
            found.setdefault(kind, name)
    return list(found.values())


@pytest.mark.parametrize("name", one_of_each_type())
def test_parameters_of_the_real_model(name: str) -> None:
    """Within a thousandth: what is left out is convolutions and norms of recurrent layers."""
    assert built_in_model(name).parameters == pytest.approx(count(name), rel=1e-3)


def count(name: str) -> int:
    """Weights of the model that transformers builds."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    listed = built_in_config(name)
    sizes: dict[str, Any] = dict(listed.get("text_config", listed))
    kind = sizes.pop("model_type")
    sizes.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())
