"""The tiny model is one that transformers and vLLM know, and is made once."""

from pathlib import Path

import pytest

from llm_carbon_meter.demo.replay import Prompts
from llm_carbon_meter.testing.tiny_model import MAX_POSITIONS, VOCABULARY, make_tiny_model

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all tests of this file."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_is_complete(model: Path) -> None:
    """Every file is there and nothing unfinished beside it."""
    assert {file.name for file in model.iterdir()} == FILES
    assert [file.name for file in model.parent.iterdir()] == [model.name]


def test_is_made_once(model: Path) -> None:
    """A second call leaves the files as they are."""
    before = {file: file.stat().st_mtime_ns for file in model.iterdir()}
    assert make_tiny_model(model) == model
    assert {file: file.stat().st_mtime_ns for file in model.iterdir()} == before


def test_is_deterministic(model: Path, tmp_path: Path) -> None:
    """Made elsewhere, it has the same bytes."""
    again = make_tiny_model(tmp_path / "again")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {
        f.name: f.read_bytes() for f in model.iterdir()
    }


def test_starts_anew_after_an_interruption(tmp_path: Path) -> None:
    """What an interrupted run left behind does not count as a model."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "tokenizer.json").write_text("{")
    unfinished = tmp_path / "model.unfinished"
    unfinished.mkdir()
    (unfinished / "rubbish").touch()
    assert {file.name for file in make_tiny_model(directory).iterdir()} == FILES
    assert not unfinished.exists()


def test_transformers_reads_the_config(model: Path) -> None:
    """The configuration is a Qwen2 of two layers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(str(model))
    assert config.model_type == "qwen2"
    assert config.num_hidden_layers == 2
    assert config.max_position_embeddings == MAX_POSITIONS


def test_transformers_loads_the_weights(model: Path) -> None:
    """No weight is missing and none is left over."""
    transformers = pytest.importorskip("transformers")
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(model), output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


@pytest.mark.parametrize("text", ["Hello, world!\n", "naïve café — 東京 🙂", "  two  spaces ", ""])
def test_tokenizer_round_trip(model: Path, text: str) -> None:
    """Any text comes back as it was: the tokenizer works on bytes."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < VOCABULARY for token in ids)


def test_chat_template(model: Path) -> None:
    """A conversation becomes Qwen's markup, with special tokens as one token each."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer.encode("<|im_start|>", add_special_tokens=False)) == 1


@pytest.mark.parametrize("tokens", [1, 2, 100, 512])
def test_prompts_have_exact_lengths(model: Path, tokens: int) -> None:
    """The demo's text has as many tokens as the trace asks for."""
    prompts = Prompts(model, seed=0)
    assert prompts.count(prompts.text(tokens)) == tokens


def test_chat_prompts_count_the_template(model: Path) -> None:
    """A chat prompt has the asked length with the template around it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model))
    text = tokenizer.apply_chat_template(
        Prompts(model, seed=0).chat(100), add_generation_prompt=True, tokenize=False
    )
    assert len(tokenizer.encode(text, add_special_tokens=False)) == 100
