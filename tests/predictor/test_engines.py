"""An engine that was not measured is like its nearest kin."""

import pytest

from llm_carbon_meter.predictor.engines import engine_key, nearest_engines

KNOWN = ("hf_transformers 4.57.6", "hf_transformers 5.2.0", "vllm 0.5.4", "vllm 0.11.1")
OLDEST, NEWEST = "vllm 0.5.4", "vllm 0.11.1"


@pytest.mark.parametrize(
    ("engine", "version", "nearest"),
    [
        ("vllm", "0.11.1", NEWEST),
        ("vLLM", "0.33.0", NEWEST),
        ("vllm", "", NEWEST),
        ("vllm", "0.4.2", OLDEST),
        ("tensorrt-llm", "1.2", NEWEST),
        ("sglang", "0.4.0", NEWEST),
        ("transformers", "4.57.6", "hf_transformers 4.57.6"),
        ("transformers", "", "hf_transformers 5.2.0"),
    ],
)
def test_one_engine_stands_for_another(engine: str, version: str, nearest: str) -> None:
    """Itself, else the newest of its kin; a version older than all is the oldest."""
    assert nearest_engines(engine, version, KNOWN) == {nearest: 1.0}


def test_versions_between_are_interpolated() -> None:
    """Half way between two releases is half of each."""
    weights = nearest_engines("vllm", "0.8", KNOWN)
    assert set(weights) == {OLDEST, NEWEST}
    assert weights[OLDEST] == pytest.approx(0.51, abs=0.02)
    assert sum(weights.values()) == pytest.approx(1)


def test_an_engine_without_kin_is_the_mean() -> None:
    """Nothing is known of it: all that was measured counts the same."""
    assert nearest_engines("mystery", "1", KNOWN) == dict.fromkeys(KNOWN, 0.25)


def test_keys() -> None:
    """Writings of one engine are one key."""
    assert engine_key("Transformers", "5.2.0") == "hf_transformers 5.2.0"
    assert engine_key("", "") == ""
