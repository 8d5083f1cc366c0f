"""Which measured engines stand for another one, and what is known of engines before."""

import re
from collections.abc import Mapping, Sequence
from math import log
from typing import Final

ALIASES: Final = {"transformers": "hf_transformers", "hf": "hf_transformers"}
KIN: Final = {
    # Engines with continuous batching and fused kernels are like vLLM's newest.
    **dict.fromkeys(("sglang", "tensorrt_llm", "trt_llm", "tgi", "lmdeploy"), "vllm"),
    # FastChat called the transformers of its time, the summer of 2023.
    "hf_transformers_fastchat": "hf_transformers 4.30",
}
FAR: Final = 12.0
"""Minor releases; over so many an engine may have become another one."""
NEAR: Final = 0.3
"""How unlike its nearest kin a version is at least, of what it can be."""

VLLM_HOST: Final = ((0, 8), 1.0), ((0, 6), 1.7), ((0,), 1.7 * 2.7)
"""Time of vLLM's host code from each release on, against today's. Version 0.6.0 has 2.7 times the
throughput of 0.5.3 on an 8B model, by less host code (blog.vllm.ai/2024/09/05/perf-update); the
engine that is the default from 0.8 has up to 1.7 times (blog.vllm.ai/2025/01/27/v1-alpha-release).
"""
EAGER: Final = {"launches": log(4.0), "sequence_steps": log(0.3), "cache": log(3.0)}
"""transformers launches every operation by itself, some four for each kernel here, without CUDA
graphs; it copies the cache to append to it; its loop does little for a sequence."""
UNKNOWN: Final = {"launches": log(2.0), "steps": log(2.0), "sequence_steps": log(1.5)}


def engine_key(engine: str, version: str) -> str:
    """One name for an engine and its version, as `FittedPhysics.engines` has them."""
    return f"{_plain(engine)} {version}".strip()


def expected_factors(engine: str, version: str) -> Mapping[str, float]:
    """Logarithms of `step_law.FACTORS` that are expected of an engine before it is measured.

    Chosen from what the engines say of themselves, with the public measurements in sight.
    """
    name, release = _kin(engine_key(engine, version))
    if name == "vllm":
        host = next(times for since, times in VLLM_HOST if not release or release >= since)
        return dict.fromkeys(("launches", "steps", "sequence_steps"), log(host))
    return EAGER if name == "hf_transformers" else UNKNOWN


def nearest_engines(engine: str, version: str, measured: Sequence[str]) -> Mapping[str, float]:
    """Weights, adding up to 1, of the measured engines that stand for one; none without kin.

    A version between two measured ones is interpolated, a newer one is like the newest, an older
    one like the oldest. Without a version it is the newest.
    """
    key = engine_key(engine, version)
    return {key: 1.0} if key in measured else _between(_kin(key)[1], _kin_of(key, measured))


def is_measured(engine: str, version: str, measured: Sequence[str]) -> bool:
    """Whether an engine was measured, in this version or, where none is given, in some."""
    key = engine_key(engine, version)
    return key in measured or (not version and bool(_kin_of(key, measured)))


def unlikeness(engine: str, version: str, measured: Sequence[str]) -> float:
    """How unlike an engine may be to those that stand for it: 0 measured, to 1 unknown."""
    key = engine_key(engine, version)
    kin = _kin_of(key, measured)
    if key in measured or not kin:
        return float(key not in measured)
    wanted = _kin(key)[1] or kin[-1][0]
    return min(1.0, NEAR + min(_releases(wanted, release) for release, _ in kin) / FAR)


def _kin_of(key: str, measured: Sequence[str]) -> Sequence[tuple[tuple[int, ...], str]]:
    """The measured versions of an engine or of the one it is like, the oldest first."""
    name, _ = _kin(key)
    others = ((_kin(candidate), candidate) for candidate in measured)
    return sorted((release, candidate) for (other, release), candidate in others if other == name)


def _releases(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Minor releases between two versions; another major release is far."""
    if one[:1] != other[:1]:
        return FAR
    return abs(_number(one) - _number(other)) * 1000.0


def _between(
    wanted: tuple[int, ...], kin: Sequence[tuple[tuple[int, ...], str]]
) -> Mapping[str, float]:
    """Shares of the measured versions next to one; the newest where none is wanted."""
    if not kin:
        return {}
    if not wanted or wanted >= kin[-1][0]:
        return {kin[-1][1]: 1.0}
    if wanted <= kin[0][0]:
        return {kin[0][1]: 1.0}
    after = next(place for place, (release, _) in enumerate(kin) if release > wanted)
    (low, older), (high, newer) = kin[after - 1], kin[after]
    share = (_number(wanted) - _number(low)) / (_number(high) - _number(low))
    return {older: 1 - share, newer: share}


def _plain(engine: str) -> str:
    name = engine.strip().casefold().replace("-", "_")
    return ALIASES.get(name, name)


def _kin(key: str) -> tuple[str, tuple[int, ...]]:
    """The engine that a key is of, or is like, and its version: ``vllm 0.11.1`` -> (0, 11, 1)."""
    name, _, version = key.partition(" ")
    if name in KIN:
        name, _, version = KIN[name].partition(" ")
    return name, tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _number(version: tuple[int, ...]) -> float:
    return sum(part / 1000.0**place for place, part in enumerate(version))
