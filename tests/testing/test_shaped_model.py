"""A model of the list at its true shape, and how long its requests are."""

from pathlib import Path

import pytest

from llm_carbon_meter.demo.replay import Prompts
from llm_carbon_meter.physics.model_list import built_in_names
from llm_carbon_meter.predictor.azure import conversation_quantiles
from llm_carbon_meter.records import SpecError
from llm_carbon_meter.testing.shaped_model import TOKENIZER, longest, make_shaped_model
from llm_carbon_meter.testing.tiny_model import make_tiny_model

PYTHIA_PARAMETERS = 70_426_624
"""As published with Pythia-70m."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all tests of this file."""
    pytest.importorskip("transformers")
    return make_shaped_model("Pythia-70m", tmp_path_factory.mktemp("models") / "Pythia-70m")


def test_it_has_the_shape_and_the_format_of_the_true_one(model: Path) -> None:
    """Random weights at the scale of its initialiser, every one of them."""
    import torch
    from transformers import AutoModelForCausalLM

    made, report = AutoModelForCausalLM.from_pretrained(
        str(model), dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(each.numel() for each in made.parameters()) == PYTHIA_PARAMETERS
    assert made.dtype == torch.float16
    scale = made.get_input_embeddings().weight.float().std().item()
    assert scale == pytest.approx(made.config.initializer_range, rel=0.01)


def test_it_speaks_through_the_tiny_model_s_tokenizer(model: Path, tmp_path: Path) -> None:
    """Prompts have the lengths that the trace asks for, and all tokens are of its vocabulary."""
    tiny = make_tiny_model(tmp_path / "tiny")
    for file in TOKENIZER:
        assert (model / file).read_bytes() == (tiny / file).read_bytes()
    prompts = Prompts(model, seed=0)
    assert prompts.count(prompts.text(100)) == 100


def test_it_is_made_once(model: Path) -> None:
    """A second call leaves the files as they are, and nothing unfinished is beside them."""
    before = {file: file.stat().st_mtime_ns for file in model.iterdir()}
    assert make_shaped_model("Pythia-70m", model) == model
    assert {file: file.stat().st_mtime_ns for file in model.iterdir()} == before
    assert not list(model.parent.glob("*.unfinished"))


def test_a_model_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    """Before anything is made."""
    with pytest.raises(SpecError, match="nearest is"):
        make_shaped_model("Pythia-71m", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_requests_are_those_of_the_trace_as_far_as_the_context_goes() -> None:
    """The longest but one in a hundred; a small context has room for both and the template."""
    trace = conversation_quantiles()
    whole = int(trace.prompt_tokens[99]), int(trace.output_tokens[99])
    assert longest("Llama-3.1-8B") == whole
    assert longest("Pythia-70m") == (1024, 512)


@pytest.mark.parametrize("name", built_in_names())
def test_every_model_of_the_list_can_be_asked(name: str) -> None:
    """Its context is known: no prompt and no answer is empty."""
    prompt, output = longest(name)
    assert prompt >= 256
    assert output >= 128
