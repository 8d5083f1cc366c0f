"""An engine that was not measured is like its nearest kin, and like what is known of it."""

import pytest

from llm_carbon_meter.predictor.measured_engines import (
    NEAR,
    engine_key,
    expected_factors,
    is_measured,
    nearest_engines,
    unlikeness,
)

MEASURED = ("hf_transformers 4.57.6", "hf_transformers 5.2.0", "vllm 0.5.4", "vllm 0.11.1")
OLDEST, NEWEST = "vllm 0.5.4", "vllm 0.11.1"


@pytest.mark.parametrize(
    ("engine", "version", "nearest"),
    [
        ("vllm", "0.11.1", NEWEST),
        ("vLLM", "", NEWEST),
        ("vllm", "0.33.0", NEWEST),
        ("vllm", "0.2.4", OLDEST),
        ("tensorrt-llm", "1.2", NEWEST),
        ("sglang", "0.4.0", NEWEST),
        ("transformers", "4.57.6", "hf_transformers 4.57.6"),
        ("transformers", "", "hf_transformers 5.2.0"),
        ("hf_transformers_fastchat", "", "hf_transformers 4.57.6"),
    ],
)
def test_one_engine_stands_for_another(engine: str, version: str, nearest: str) -> None:
    """Itself, else the nearest version of its kin."""
    assert nearest_engines(engine, version, MEASURED) == {nearest: 1.0}


def test_versions_between_are_interpolated() -> None:
    """Half way between two releases is as much of either."""
    weights = nearest_engines("vllm", "0.8.3", MEASURED)
    assert weights[OLDEST] == pytest.approx(weights[NEWEST], abs=0.01)
    assert sum(weights.values()) == pytest.approx(1)


def test_an_engine_without_kin_has_nobody() -> None:
    """What is known of engines anyhow is all."""
    assert nearest_engines("mystery", "1", MEASURED) == {}
    assert unlikeness("mystery", "1", MEASURED) == 1.0


@pytest.mark.parametrize(
    ("version", "unlike"),
    [("0.11.1", 0.0), ("", NEAR), ("0.12.0", NEAR + 1 / 12), ("0.33.0", 1.0), ("1.0", 1.0)],
)
def test_the_further_the_less_alike(version: str, unlike: float) -> None:
    """By the minor releases between, up to what engines can differ by."""
    assert unlikeness("vllm", version, MEASURED) == pytest.approx(unlike, abs=0.01)


def test_without_a_version_an_engine_counts_as_measured() -> None:
    """It is taken to be the newest that was."""
    assert is_measured("vllm", "", MEASURED)
    assert is_measured("transformers", "5.2.0", MEASURED)
    assert not is_measured("vllm", "0.33.0", MEASURED)
    assert not is_measured("", "", MEASURED)


def test_newer_releases_of_vllm_need_less_of_the_host() -> None:
    """Each of two rewrites made the host's code faster; transformers launches more."""
    old, middle, new = (expected_factors("vllm", version) for version in ("0.5.4", "0.6.3", "0.9"))
    for name in ("launches", "steps", "sequence_steps"):
        assert old[name] > middle[name] > new[name] == 0.0
    assert expected_factors("vllm", "") == new
    assert expected_factors("transformers", "5.2.0")["launches"] > 1


def test_keys() -> None:
    """Writings of one engine are one key."""
    assert engine_key("Transformers", "5.2.0") == "hf_transformers 5.2.0"
    assert engine_key("", "") == ""
