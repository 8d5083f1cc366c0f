"""What the physics needs of a model (Hugging Face ``config.json``) and a GPU (data/gpus.toml)."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from llm_carbon_meter.records import SpecError

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A data sheet: peaks per second, watts. Tensor peak is dense FP16/BF16."""

    name: str
    compute_ops_per_s: float
    vector_ops_per_s: float
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float
    """One direction."""
    board_watts: float
    idle_watts: float


@cache
def gpu_specs() -> Mapping[str, GpuSpec]:
    """Every GPU of the table, under its short name and NVML's names, case folded."""
    text = resources.files("llm_carbon_meter.data").joinpath("gpus.toml").read_text("utf-8")
    specs: dict[str, GpuSpec] = {}
    for name, row in tomllib.loads(text).items():
        spec = GpuSpec(
            name=name,
            compute_ops_per_s=row["compute_tflops"] * TERA,
            vector_ops_per_s=row["vector_tflops"] * TERA,
            bandwidth_bytes_per_s=row["bandwidth_gb_s"] * GIGA,
            link_bytes_per_s=row["link_gb_s"] * GIGA,
            board_watts=float(row["board_watts"]),
            idle_watts=float(row["idle_watts"]),
        )
        for alias in (name, *row["names"]):
            specs[alias.casefold()] = spec
    return specs


def gpu_spec(name: str) -> GpuSpec:
    """Look a GPU up by short name (``H100``) or as NVML names it (``NVIDIA H100 80GB HBM3``).

    Raises:
        SpecError: not in the table; names the nearest.
    """
    specs = gpu_specs()
    if name.casefold() in specs:
        return specs[name.casefold()]
    near = difflib.get_close_matches(name.casefold(), specs, n=1, cutoff=0.0)
    known = ", ".join(dict.fromkeys(spec.name for spec in specs.values()))
    raise SpecError(
        f"GPU {name!r} is not in data/gpus.toml; nearest is {specs[near[0]].name}; known: {known}"
    )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer; the usual symbols are in brackets."""

    name: str
    hidden_size: int
    """[h]"""
    intermediate_size: int
    """[f], of one expert where there are experts"""
    num_layers: int
    num_heads: int
    """[n_h]"""
    num_kv_heads: int
    """[n_kv]"""
    head_dim: int
    """[d]"""
    vocab_size: int
    """[V]"""
    tied_head: bool
    gated_mlp: bool = True
    activation_ops: float = 5.0
    """[c_act] operations per element"""
    layer_norm: bool = False
    """LayerNorm with bias instead of RMSNorm"""
    norms_per_layer: int = 2
    embedding_norm: bool = False
    rope: bool = True
    softmax_ops: float = 5.0
    """[c_soft]"""
    logit_softcap: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    """bias on every other linear kernel"""
    sliding_window: int | None = None
    """[W] of every second layer"""
    num_experts: int = 0
    """[E]"""
    experts_per_token: int = 0
    """[k]"""
    max_context: int = 0
    weight_bytes: float = 2.0
    """[D_W] per element"""
    activation_bytes: float = 2.0
    """[D_A]"""
    kv_bytes: float = 2.0
    """[D_KV]"""

    @property
    def parameters(self) -> int:
        """All weights, biases and embeddings."""
        return self._count(self.num_experts or 1, embeddings=1 if self.tied_head else 2)

    @property
    def active_parameters(self) -> int:
        """Parameters that a token meets, both embeddings counted, as the LLM-BENCH note does."""
        return self._count(self.experts_per_token or 1, embeddings=2)

    def _count(self, experts: int, embeddings: int) -> int:
        h, f = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * h * query + 2 * h * key
        mlp = experts * (3 if self.gated_mlp else 2) * h * f + h * self.num_experts
        norm = h * (2 if self.layer_norm else 1)
        bias = (query + 2 * key if self.qkv_bias else 0) + (2 * h + f if self.linear_bias else 0)
        layer = attention + mlp + self.norms_per_layer * norm + bias
        model_norms = norm * (2 if self.embedding_norm else 1)
        return self.num_layers * layer + model_norms + embeddings * self.vocab_size * h


# What a family does beyond its config fields. Sources: the Hugging Face model code of each type.
_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {},
    "phi3": {},
    "mixtral": {},
    "qwen3_moe": {},
    "gemma": {"activation_ops": 9.0},
    "gemma2": {
        "activation_ops": 9.0,
        "norms_per_layer": 4,
        "softmax_ops": 8.0,
        "logit_softcap": True,
    },
    "bloom": {
        "activation_ops": 8.0,
        "gated_mlp": False,
        "layer_norm": True,
        "embedding_norm": True,
        "rope": False,
        "softmax_ops": 6.0,
        "qkv_bias": True,
        "linear_bias": True,
    },
}
_TIED_BY_DEFAULT = {"gemma", "gemma2", "bloom"}
_DTYPE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0}


def model_spec(config: Mapping[str, Any], name: str = "") -> ModelSpec:
    """Read a Hugging Face ``config.json``.

    Raises:
        SpecError: unknown architecture, or a field is missing or contradicts another.
    """
    family = str(config.get("model_type", ""))
    if family not in _FAMILIES:
        raise SpecError(
            f"model type {family!r} is not known; known: {', '.join(sorted(_FAMILIES))}. "
            "Requests are metered all the same: steps are then divided by tokens"
        )
    heads = _whole(config, "num_attention_heads", "n_head")
    hidden = _whole(config, "hidden_size", "n_embed")
    width = "moe_intermediate_size" if config.get("moe_intermediate_size") else "intermediate_size"
    element = _DTYPE_BYTES.get(str(_first(config, "bfloat16", "torch_dtype", "dtype")), 2.0)
    return _checked(
        ModelSpec(
            name=name or str(config.get("_name_or_path") or family),
            hidden_size=hidden,
            intermediate_size=4 * hidden if family == "bloom" else _whole(config, width),
            num_layers=_whole(config, "num_hidden_layers", "n_layer"),
            num_heads=heads,
            num_kv_heads=_whole(config, "num_key_value_heads", default=heads),
            head_dim=_whole(config, "head_dim", default=hidden // heads),
            vocab_size=_whole(config, "vocab_size"),
            tied_head=bool(_first(config, family in _TIED_BY_DEFAULT, "tie_word_embeddings")),
            sliding_window=_whole(config, "sliding_window", default=4096)
            if family == "gemma2"
            else None,
            num_experts=_whole(config, "num_local_experts", "num_experts", default=0),
            experts_per_token=_whole(config, "num_experts_per_tok", default=0),
            max_context=_whole(config, "max_position_embeddings", "seq_length", default=0),
            weight_bytes=element,
            activation_bytes=element,
            kv_bytes=element,
            **_FAMILIES[family],
        )
    )


def _checked(model: ModelSpec) -> ModelSpec:
    """Refuse fields that contradict each other."""
    if model.head_dim < 1:
        raise SpecError(f"{model.num_heads} heads do not fit a hidden size of {model.hidden_size}")
    if model.num_heads % model.num_kv_heads:
        raise SpecError(
            f"{model.num_heads} query heads cannot share {model.num_kv_heads} key/value heads"
        )
    if not min(model.num_experts, 1) <= model.experts_per_token <= model.num_experts:
        raise SpecError(
            f"{model.experts_per_token} experts per token do not fit {model.num_experts} experts"
        )
    return model


def _first(config: Mapping[str, Any], default: Any, *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def _whole(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of some fields, a whole number above 0, or the default where none is there."""
    value = _first(config, None, *names)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        field = " or ".join(names)
        raise SpecError(f"config.json: {field} is {value!r}, expected a whole number > 0")
    return value


@cache
def _model_list() -> Mapping[str, Mapping[str, Any]]:
    """Name -> aliases and public config.json of the models of data/models.json."""
    text = resources.files("llm_carbon_meter.data").joinpath("models.json").read_text("utf-8")
    models: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return models


@cache
def _listed_names() -> Mapping[str, str]:
    """Every name and alias of the list, with and without its organisation, case folded."""
    names = {name.casefold(): name for name in _model_list()}
    for name, model in _model_list().items():
        for alias in model["aliases"]:
            names.setdefault(alias.casefold(), name)
            names.setdefault(alias.rpartition("/")[2].casefold(), name)
    return names


def built_in_names() -> Sequence[str]:
    """The models that are known without a config.json."""
    return tuple(_model_list())


def built_in_config(name: str) -> Mapping[str, Any]:
    """What the list holds of a model's config.json; a vision model's is that of its text part.

    Raises:
        SpecError: not in the list; names the nearest.
    """
    config: Mapping[str, Any] = _model_list()[_listed_name(name)]["config"]
    return config


def built_in_model(name: str) -> ModelSpec:
    """A model of the built-in list, by its short name or a hub id, in any case.

    Raises:
        SpecError: not in the list; names the nearest.
    """
    return model_spec(built_in_config(name), _listed_name(name))


def _listed_name(name: str) -> str:
    names = _listed_names()
    if name.casefold() in names:
        return names[name.casefold()]
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.0)
    raise SpecError(
        f"model {name!r} is not in data/models.json; nearest is {names[near[0]]}; "
        "give the path of its config.json"
    )
