"""Which measured engines stand for one that was not measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

ALIASES: Final = {"transformers": "hf_transformers", "hf": "hf_transformers"}
KIN: Final = {
    # Engines with continuous batching and fused kernels are like vLLM's newest.
    **dict.fromkeys(("sglang", "tensorrt_llm", "trt_llm", "tgi", "lmdeploy"), "vllm"),
    # FastChat called the transformers of its time, the summer of 2023.
    "hf_transformers_fastchat": "hf_transformers 4.30",
}
FAR: Final = 12.0
"""Minor releases; over so many an engine becomes another one."""
LARGEST_COMMON: Final = 0.5
"""Even then it is as much like its kin as like all engines together."""


def engine_key(engine: str, version: str) -> str:
    """One name for an engine and its version, as `FittedPhysics.engines` has them."""
    return f"{_plain(engine)} {version}".strip()


def nearest_engines(engine: str, version: str, known: Sequence[str]) -> Mapping[str, float]:
    """Weights, adding up to 1, of the known engines that stand for one.

    A version between two known ones is interpolated, a newer one is like the newest, an older one
    like the oldest; the further from all of them, the more all engines together count. Without a
    version it is the newest, without kin the mean of all.
    """
    key = engine_key(engine, version)
    if key in known:
        return {key: 1.0}
    name, wanted = _kin(key)
    kin = sorted(
        (release, candidate)
        for candidate in known
        for other, release in [_kin(candidate)]
        if other == name
    )
    common = _common(wanted, [release for release, _ in kin]) if kin else 1.0
    weights = dict.fromkeys(known, common / len(known))
    for candidate, share in _between(wanted, kin).items():
        weights[candidate] += (1 - common) * share
    return {candidate: weight for candidate, weight in weights.items() if weight}


def _common(wanted: tuple[int, ...], measured: Sequence[tuple[int, ...]]) -> float:
    """The part that all engines together have, by the distance to the nearest version."""
    if not wanted:
        return 0.0
    return min(LARGEST_COMMON, min(_releases(wanted, version) for version in measured) / FAR)


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
