"""Which measured engines stand for one that was not measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

ALIASES: Final = {"transformers": "hf_transformers", "hf": "hf_transformers"}
KIN: Final = dict.fromkeys(("sglang", "tensorrt_llm", "trt_llm", "tgi", "lmdeploy"), "vllm")
"""Engines with continuous batching and fused kernels are like vLLM's newest."""


def engine_key(engine: str, version: str) -> str:
    """One name for an engine and its version, as `FittedPhysics.engines` has them."""
    return f"{_plain(engine)} {version}".strip()


def nearest_engines(engine: str, version: str, known: Sequence[str]) -> Mapping[str, float]:
    """Weights, adding up to 1, of the known engines that stand for one.

    A version between two known ones is interpolated, an unknown or newer one is the newest, an
    older one the oldest. An engine of no known kin is the mean of all.
    """
    key = engine_key(engine, version)
    if key in known:
        return {key: 1.0}
    name = KIN.get(_plain(engine), _plain(engine))
    kin = sorted((_version(one), one) for one in known if one.split()[0] == name)
    if not kin:
        return dict.fromkeys(known, 1 / len(known))
    wanted = _version(key) if _plain(engine) == name else ()
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


def _version(key: str) -> tuple[int, ...]:
    """``vllm 0.11.1`` -> (0, 11, 1); empty without a version."""
    _, _, version = key.partition(" ")
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _number(version: tuple[int, ...]) -> float:
    return sum(part / 1000.0**place for place, part in enumerate(version))
