"""Which kernels of a checkpoint are stored in another number format than the rest.

A ``quantization_config`` names modules that are left as they are, or that have a format of their
own: by name, with wildcards, or as a regular expression. Each kernel is looked up in every layer
that has it; where layers differ it counts with their mean.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from llm_carbon_meter.physics.config_fields import Config, expert_layer_numbers, num_layers
from llm_carbon_meter.physics.number_formats import StoredAs, WeightFormat, algorithm, group_format

LEFT_OUT: Final = (
    *("ignore", "ignored_layers", "exclude_modules"),
    *("modules_to_not_convert", "llm_int8_skip_modules"),
)
"""Fields that list modules left as they are."""
CLASSES: Final = frozenset(("Linear", "RoutedExperts", "FusedMoE", "MoEGptOss"))
"""Targets that mean every module."""
EXPERT: Final = "experts.0."
_MLP: Final = ("mlp.", "mixer.", "feed_forward.", "block_sparse_moe.", "ffn.", "moe.")
_HALVES: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def _mlp_modules(place: str, half: str) -> tuple[str, ...]:
    return tuple(f"{mlp}{place}{name}" for mlp in _MLP for name in (half, _HALVES[half]))


MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "q_proj": ("self_attn.q_proj", "self_attn.q_b_proj", "mixer.q_proj", "attn.wq_b"),
    "q_down_proj": ("self_attn.q_a_proj", "attn.wq_a"),
    "k_proj": ("self_attn.k_proj", "mixer.k_proj", "attn.wkv"),
    "v_proj": ("self_attn.v_proj", "mixer.v_proj"),
    "kv_down_proj": ("self_attn.kv_a_proj_with_mqa",),
    "kv_proj": ("self_attn.kv_b_proj",),
    "out_down_proj": ("attn.wo_a",),
    "out_proj": ("self_attn.o_proj", "mixer.o_proj", "attn.wo_b"),
    "index_q_proj": ("self_attn.indexer.wq_b",),
    "index_k_proj": ("self_attn.indexer.wk",),
    "recurrent_in_proj": (
        *("linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz", "mixer.in_proj", "mamba.in_proj"),
        "self_attn.q_proj",
    ),
    "recurrent_out_proj": (
        *("linear_attn.out_proj", "mixer.out_proj", "mamba.out_proj", "self_attn.o_proj"),
    ),
    "latent_in_proj": ("mixer.fc1_latent_proj",),
    "latent_out_proj": ("mixer.fc2_latent_proj",),
    **{half: _mlp_modules("", half) for half in _HALVES},
    **{f"expert_{half}": _mlp_modules(EXPERT, half) for half in _HALVES},
    **{
        f"shared_{half}": _mlp_modules("shared_experts.", half)
        + _mlp_modules("shared_expert.", half)
        for half in _HALVES
    },
}
"""Kernel -> what its module is called in a layer, in one model or the other."""
PREFIXES: Final = ("model.", "model.language_model.", "language_model.model.", "backbone.", "")
_LAYER: Final = re.compile(r"(?:.*\.)?layers\.(\d+)(?=[.*]|$)\.?(.*)")
_ANY_LAYER: Final = re.compile(r".*\blayers\.")
_OTHER_EXPERT: Final = re.compile(r"experts\.[1-9]")


class Rule(NamedTuple):
    """A pattern of modules, and how these are stored."""

    pattern: str
    """Of modules within a layer; of whole names where it holds for all layers."""
    stored: StoredAs


class Rules(NamedTuple):
    """Of one kind; what they say of all layers, and of some."""

    everywhere: Sequence[Rule]
    by_layer: Mapping[int, Sequence[Rule]]

    @classmethod
    def of(cls, patterns: Iterable[tuple[str, StoredAs]]) -> "Rules":
        """Sort patterns by the layer that they name."""
        everywhere: dict[Rule, None] = {}
        by_layer: dict[int, set[Rule]] = {}
        for text, stored in patterns:
            if "experts." in text and _OTHER_EXPERT.search(text):
                continue  # as the first one
            found = None if text.startswith("re:") else _LAYER.fullmatch(text)
            if found:
                by_layer.setdefault(int(found[1]), set()).add(Rule(found[2], stored))
            else:
                everywhere[Rule(text, stored)] = None
        in_order = {layer: tuple(sorted(rules)) for layer, rules in by_layer.items()}
        return cls(tuple(everywhere), in_order)


def exceptions(
    config: Config,
    quantisation: Mapping[str, Any],
    default: WeightFormat,
    kernels: Iterable[str],
    modules: Mapping[str, Sequence[str]],
) -> tuple[tuple[str, StoredAs], ...]:
    """Kernels that are stored otherwise than the default says.

    Args:
        config: the text model's config.json.
        quantisation: its section on quantisation; empty where nothing is quantised.
        default: how kernels are stored that no rule names.
        kernels: of the model.
        modules: what these are called, where it is not as in `MODULES`.
    """
    tiers = [rules for rules in _tiers(quantisation, default) if rules.everywhere or rules.by_layer]
    if not tiers:
        return ()
    rest = default.plain if quantisation.get("quantized_layers") else None
    found = []
    for kernel in kernels:
        usual, names = default.of(kernel), tuple(modules.get(kernel, MODULES[kernel]))
        stored = [
            _stored(
                names, tuple((rules.everywhere, rules.by_layer.get(layer, ())) for rules in tiers)
            )
            or rest
            or usual
            for layer in _layers_with(config, kernel)
        ]
        mean = sum(one.element for one in stored) / len(stored)
        compute = Counter(one.compute for one in stored).most_common(1)[0][0]
        if (mean, compute) != usual:
            found.append((kernel, StoredAs(mean, compute)))
    return tuple(found)


def _tiers(quantisation: Mapping[str, Any], default: WeightFormat) -> Iterable[Rules]:
    """Rules by precedence: modules left out, modules named one by one, groups of modules."""
    left = [name for field in LEFT_OUT for name in quantisation.get(field) or ()]
    yield Rules.of((str(name), default.plain) for name in left)
    layers = quantisation.get("quantized_layers") or {}
    yield Rules.of((name, algorithm(one, default.plain)) for name, one in layers.items())
    groups = () if layers else (quantisation.get("config_groups") or {}).values()
    yield Rules.of(
        (str(target), group_format(group, default.plain))
        for group in groups
        for target in group.get("targets") or ()
        if target not in CLASSES
    )


@lru_cache(maxsize=4096)
def _stored(
    modules: tuple[str, ...], tiers: tuple[tuple[Sequence[Rule], Sequence[Rule]], ...]
) -> StoredAs | None:
    """What the first rule says that meets a module of a kernel."""
    for everywhere, own in tiers:
        for module in modules:
            for rule in own:
                if _within(rule.pattern)(module):
                    return rule.stored
            for rule in everywhere:
                if _whole(rule.pattern)(f"layers.0.{module}"):
                    return rule.stored
    return None


@lru_cache(maxsize=4096)
def _within(pattern: str) -> Callable[[str], bool]:
    """Whether a module of a layer is meant, or is part of what is meant."""
    if pattern in ("", "*"):
        return lambda _module: True
    search = re.compile(f"{_translated(pattern)}(?:\\.|$)").match
    return lambda module: search(module) is not None


@lru_cache(maxsize=1024)
def _whole(pattern: str) -> Callable[[str], bool]:
    """The same of a pattern that holds for all layers."""
    if pattern.startswith("re:"):
        match = re.compile(pattern.removeprefix("re:")).match
        return lambda name: any(match(prefix + name) for prefix in PREFIXES)
    search = re.compile(
        f"(?:^|\\.){_translated(_ANY_LAYER.sub('layers.', pattern))}(?:\\.|$)"
    ).search
    return lambda name: search(f"model.{name}") is not None


def _translated(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*")


_ATTENTION: Final = frozenset(("*", "attention", "full_attention", "sliding_attention"))
_RECURRENT: Final = frozenset(("M", "mamba", "linear_attention"))
_BLOCKS: Final[Mapping[str, frozenset[str]]] = {
    "mlp": frozenset(("-", "mlp")),
    "experts": frozenset(("E", "moe")),
}


def _layers_with(config: Config, kernel: str) -> Sequence[int]:
    """Numbers of the layers that have a kernel; all where that is not known."""
    layers = range(num_layers(config))
    blocks = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    kinds = list(blocks or config.get("layer_types") or ())
    if kernel.startswith("recurrent_"):
        return _of_kinds(kinds, _RECURRENT) or layers
    if kernel.startswith(("expert_", "shared_", "latent_")):
        chosen = _of_kinds(kinds, _BLOCKS["experts"]) if blocks else expert_layer_numbers(config)
        return chosen or layers
    if kernel in _HALVES:
        if blocks:
            return _of_kinds(kinds, _BLOCKS["mlp"]) or layers
        with_experts = set(expert_layer_numbers(config))
        return [layer for layer in layers if layer not in with_experts] or layers
    return _of_kinds(kinds, _ATTENTION) or layers


def _of_kinds(kinds: Sequence[str], wanted: frozenset[str]) -> list[int]:
    return [layer for layer, kind in enumerate(kinds) if kind in wanted]
