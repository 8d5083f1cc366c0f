"""An engine that was not measured is like its nearest kin."""

import pytest

from llm_carbon_meter.predictor.measured_engines import engine_key, nearest_engines

KNOWN = ("hf_transformers 4.57.6", "hf_transformers 5.2.0", "vllm 0.5.4", "vllm 0.11.1")
OLDEST, NEWEST = "vllm 0.5.4", "vllm 0.11.1"


@pytest.mark.parametrize(
    ("engine", "version", "nearest"),
    [
        ("vllm", "0.11.1", NEWEST),
        ("vLLM", "", NEWEST),
        ("tensorrt-llm", "1.2", NEWEST),
        ("sglang", "0.4.0", NEWEST),
        ("transformers", "4.57.6", "hf_transformers 4.57.6"),
        ("transformers", "", "hf_transformers 5.2.0"),
    ],
)
def test_one_engine_stands_for_another(engine: str, version: str, nearest: str) -> None:
    """Itself, else the newest of its kin."""
    assert nearest_engines(engine, version, KNOWN) == {nearest: 1.0}


@pytest.mark.parametrize(
    ("engine", "version", "nearest", "common"),
    [
        ("vllm", "0.14.1", NEWEST, 0.25),
        ("vllm", "0.33.0", NEWEST, 0.5),
        ("vllm", "0.2.4", OLDEST, 0.25),
        ("transformers", "6.0", "hf_transformers 5.2.0", 0.5),
        ("hf_transformers_fastchat", "", "hf_transformers 4.57.6", 0.5),
    ],
)
def test_far_from_what_was_measured_all_engines_count(
    engine: str, version: str, nearest: str, common: float
) -> None:
    """The nearest version, and with the distance more and more the mean of all, up to half."""
    weights = nearest_engines(engine, version, KNOWN)
    assert weights[nearest] == pytest.approx(1 - common + common / len(KNOWN), abs=1e-3)
    assert sum(weights.values()) == pytest.approx(1)


def test_versions_between_are_interpolated() -> None:
    """Half way between two releases is as much of either, and some of all."""
    weights = nearest_engines("vllm", "0.8.3", KNOWN)
    assert weights[OLDEST] == pytest.approx(weights[NEWEST], abs=0.01)
    assert weights["hf_transformers 5.2.0"] == pytest.approx(0.25 / 4, abs=0.01)
    assert sum(weights.values()) == pytest.approx(1)


def test_an_engine_without_kin_is_the_mean() -> None:
    """Nothing is known of it: all that was measured counts the same."""
    assert nearest_engines("mystery", "1", KNOWN) == dict.fromkeys(KNOWN, 0.25)


def test_keys() -> None:
    """Writings of one engine are one key."""
    assert engine_key("Transformers", "5.2.0") == "hf_transformers 5.2.0"
    assert engine_key("", "") == ""
