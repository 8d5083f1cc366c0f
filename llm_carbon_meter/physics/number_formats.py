"""Bytes per weight and type of arithmetic, from the ``quantization_config`` of a config.json."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from llm_carbon_meter.records import SpecError

DTYPE_BYTES: Final[Mapping[str, float]] = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "float8_e4m3fn": 1.0,
}
SCALE_BITS: Final = 16
MXFP4_BYTES: Final = 0.53125
"""4 bits and an 8-bit scale for 32 elements."""
MXFP8_BYTES: Final = 1.03125
"""8 bits and an 8-bit scale for 32 elements."""
NVFP4_BYTES: Final = 0.5625
"""4 bits and an 8-bit scale for 16 elements."""


class StoredAs(NamedTuple):
    """How the weights of a linear kernel are stored and multiplied."""

    element: float
    """Bytes per weight, scales and zero points included [D_W]."""
    compute: str
    """Type of the products, a key of `GpuSpec.peak`; weight-only formats compute in 16 bits."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weights of a model are stored that no exception names."""

    linear: StoredAs
    experts: StoredAs
    plain: StoredAs
    """What is left as it is: embedding, LM head, router, norms, biases."""
    approximation: str = ""
    block_scaled: bool = False
    """FP8 with a scale for every block of weights."""
    unpacked_as: str = ""
    """int8 or nf4 where bitsandbytes unpacks the weights with kernels of its own in every step."""

    def of(self, kernel: str) -> StoredAs:
        """Of a kernel, by its name."""
        return self.experts if kernel.startswith("expert_") else self.linear


def weight_format(
    quantisation: Mapping[str, Any], dtype: str, *, any_format: bool = False
) -> WeightFormat:
    """Read a ``quantization_config``; an empty one means weights as they are.

    Args:
        quantisation: of the config.json or of hf_quant_config.json, or just
            ``{"quant_method": ...}``.
        dtype: of the activations, as the config names it.
        any_format: count weights of an unknown method as not quantised, and say so.

    Raises:
        SpecError: the method is not known.
    """
    element = DTYPE_BYTES.get(dtype, 2.0)
    kept = StoredAs(element, "float32" if dtype == "float32" else "bfloat16")
    plain = WeightFormat(kept, kept, kept)
    method = str(quantisation.get("quant_method", "")).removesuffix("_marlin")
    named = str(quantisation.get("quant_algo") or "")
    if not quantisation:
        return plain
    if method == "compressed-tensors":
        return _compressed_tensors(quantisation, plain)
    if named == MIXED or quantisation.get("quantized_layers"):
        return _mixed(quantisation, plain)
    if named:
        return _uniform(plain, algorithm(quantisation, kept))
    if method in ("awq", "gptq", "auto-round", "moe_wna16"):
        grouped = _grouped_bytes(quantisation, zero_points=True)
        return _uniform(plain, StoredAs(grouped, kept.compute))
    if method == "bitsandbytes":
        if quantisation.get("load_in_8bit"):
            return replace(_uniform(plain, StoredAs(1.0, "int8")), unpacked_as="int8")
        # blocks of 64 with an FP32 scale
        unpacked = StoredAs(NVFP4_BYTES, kept.compute)
        return replace(_uniform(plain, unpacked), unpacked_as="nf4")
    if "mxfp4" in method:  # gpt-oss: the experts alone
        return replace(plain, experts=StoredAs(MXFP4_BYTES, kept.compute))
    if "mxfp8" in method:
        return _uniform(plain, StoredAs(MXFP8_BYTES, "fp8"))
    if "fp4" in method:
        return _uniform(plain, StoredAs(NVFP4_BYTES, "fp4"))
    if "fp8" in method or method == "modelopt":
        scales = _block_scale_bytes(quantisation)
        return replace(_uniform(plain, StoredAs(1 + scales, "fp8")), block_scaled=scales > 0)
    if method == "experts_int8":
        return replace(plain, experts=StoredAs(1.0, kept.compute))
    if any_format:
        return replace(plain, approximation=f"{method} weights counted as not quantised")
    raise SpecError(
        f"quantisation method {method!r} is not known; known: {', '.join(KNOWN_METHODS)}. "
        "Name the format that comes nearest (--dtype)"
    )


MIXED: Final = "MIXED_PRECISION"
KNOWN_METHODS: Final = (
    *("awq", "auto-round", "bitsandbytes", "compressed-tensors", "experts_int8", "fbgemm_fp8"),
    *("fp8", "gptq", "modelopt", "modelopt_fp4", "modelopt_mixed", "mxfp4", "mxfp8"),
)


def quantisation_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section on quantisation; empty where there is none.

    ModelOpt nests it once more in hf_quant_config.json.

    Raises:
        SpecError: it is no section.
    """
    section = config.get("quantization_config") or {}
    if not isinstance(section, Mapping):
        raise SpecError(
            f"config.json: quantization_config is a {type(section).__name__}; expected an object"
        )
    inner = section.get("quantization")
    return inner if isinstance(inner, Mapping) else section


def _uniform(plain: WeightFormat, stored: StoredAs) -> WeightFormat:
    return replace(plain, linear=stored, experts=stored)


def algorithm(scheme: Mapping[str, Any], plain: StoredAs) -> StoredAs:
    """What one of ModelOpt's algorithms (``quant_algo``) makes of weights."""
    name = str(scheme.get("quant_algo") or "").upper()
    compute = plain.compute if "A16" in name or name.endswith("_WO") else ""
    if "NVFP4" in name:
        return StoredAs(NVFP4_BYTES, compute or "fp4")
    if "MXFP4" in name:
        return StoredAs(MXFP4_BYTES, compute or plain.compute)
    if "MXFP8" in name:
        return StoredAs(MXFP8_BYTES, compute or "fp8")
    if "FP8" in name:
        return StoredAs(1.0, compute or "fp8")
    if "W4" in name or "INT4" in name:
        return StoredAs(_grouped_bytes({"bits": 4, **scheme}, zero_points=False), plain.compute)
    if "W8" in name or "INT8" in name:
        return StoredAs(1.0, compute or "int8")
    return plain


def _mixed(quantisation: Mapping[str, Any], plain: WeightFormat) -> WeightFormat:
    """Every quantised module has its own: what most have is the rule, the others exceptions."""
    layers = (quantisation.get("quantized_layers") or {}).items()
    kinds = Counter(algorithm(one, plain.plain) for _, one in layers)
    experts = Counter(algorithm(one, plain.plain) for name, one in layers if "experts" in name)
    linear = kinds.most_common(1)[0][0] if kinds else plain.linear
    if quantisation.get("quant_method") == "fp8":  # an FP8 checkpoint, of which some is less
        linear = StoredAs(1.0, "fp8")
    return replace(
        plain, linear=linear, experts=experts.most_common(1)[0][0] if experts else linear
    )


def _block_scale_bytes(quantisation: Mapping[str, Any]) -> float:
    """FP32 scale of a block, per element; scales per tensor or channel are negligible."""
    rows, columns = quantisation.get("weight_block_size") or (0, 0)
    return 4 / (rows * columns) if rows and columns else 0.0


def _grouped_bytes(scheme: Mapping[str, Any], *, zero_points: bool) -> float:
    """Integers of some bits, with a 16-bit scale and perhaps a zero point for every group."""
    bits = int(scheme.get("bits") or scheme.get("w_bit") or scheme.get("num_bits") or 4)
    group = int(scheme.get("group_size") or (128 if "bits" in scheme or zero_points else -1))
    shared = SCALE_BITS + (bits if zero_points else 0)
    return (bits + (shared / group if group > 0 else 0)) / 8


def _compressed_tensors(quantisation: Mapping[str, Any], plain: WeightFormat) -> WeightFormat:
    """The group of all linear modules is the rule, else the first; others are exceptions."""
    groups = list((quantisation.get("config_groups") or {}).values())
    if not groups:  # only the method's name is known
        return _uniform(plain, StoredAs(1.0, "fp8"))
    usual = [group for group in groups if "Linear" in (group.get("targets") or ())]
    return _uniform(plain, group_format((usual or groups)[0], plain.plain))


def group_format(group: Mapping[str, Any], plain: StoredAs) -> StoredAs:
    """What a group of compressed-tensors makes of weights."""
    weights, activations = group.get("weights") or {}, group.get("input_activations")
    compute = _compute(activations) if activations else plain.compute
    if weights.get("type") == "float" and weights.get("num_bits") == 4:
        element = MXFP4_BYTES if weights.get("group_size") == 32 else NVFP4_BYTES
    elif weights:
        element = _grouped_bytes(weights, zero_points=not weights.get("symmetric", True))
    else:
        element = plain.element
    return StoredAs(element, compute)


def _compute(activations: Mapping[str, Any]) -> str:
    """Type of the products where activations are quantised as well."""
    return f"{'fp' if activations.get('type') == 'float' else 'int'}{activations['num_bits']}"


def has_fp8_cache(quantisation: Mapping[str, Any]) -> bool:
    """Whether a checkpoint comes with scales for a KV cache in FP8."""
    scheme = quantisation.get("kv_cache_scheme") or {}
    algo = quantisation.get("kv_cache_quant_algo") or (scheme if isinstance(scheme, str) else "")
    bits = scheme.get("num_bits") if isinstance(scheme, Mapping) else 0
    return str(algo).upper() == "FP8" or bits == 8


PLAIN_DTYPES: Final = ("bfloat16", "float16", "float32")
QUANTISED_DTYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "fp8": {"quant_method": "fp8"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "int4": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "mxfp4": {
        "quant_method": "compressed-tensors",
        "config_groups": {"all": {"weights": {"type": "float", "num_bits": 4, "group_size": 32}}},
    },
}
"""What a config.json would say of weights in these formats, all linear kernels alike."""


def with_dtype(config: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    """A config.json as served in a number format.

    A 16 or 32-bit type is that of the activations: a checkpoint that is quantised stays so. A
    quantised format replaces the checkpoint's own; where it is the same, the own one is kept, with
    its block sizes and its exceptions.

    Args:
        config: the parsed file.
        dtype: one of `PLAIN_DTYPES` or `QUANTISED_DTYPES`; empty for what the file says.

    Raises:
        SpecError: another one.
    """
    if not dtype:
        return config
    if dtype not in PLAIN_DTYPES and dtype not in QUANTISED_DTYPES:
        names = ", ".join((*PLAIN_DTYPES, *QUANTISED_DTYPES))
        raise SpecError(f"number format {dtype!r} is not known; known: {names}")
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else {}
    own = text.get("quantization_config") or config.get("quantization_config") or {}
    if dtype in PLAIN_DTYPES:
        change: Mapping[str, Any] = {"dtype": dtype}
    else:
        change = (
            {} if _format_name(own) == dtype else {"quantization_config": QUANTISED_DTYPES[dtype]}
        )
    nested = {"text_config": {**text, **change}} if text else {}
    return {**config, **nested, **change}


def _format_name(quantisation: Mapping[str, Any]) -> str:
    """The key of `QUANTISED_DTYPES` that a section comes down to; empty where there is none."""
    if not quantisation:
        return ""
    if quantisation.get("quant_method") == "bitsandbytes":
        return "int8" if quantisation.get("load_in_8bit") else "nf4"
    weights = weight_format(quantisation, "bfloat16", any_format=True)
    if weights.experts.element == MXFP4_BYTES:
        return "mxfp4"
    element, compute = weights.linear
    if compute in ("fp8", "int8"):
        return compute
    is_int4 = compute == "bfloat16" and 0.5 <= element < NVFP4_BYTES
    return "int4" if is_int4 else ""
