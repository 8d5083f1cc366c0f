"""Bytes per weight and type of arithmetic, from the ``quantization_config`` of a config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

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
NVFP4_BYTES: Final = 0.5625
"""4 bits and an 8-bit scale for 16 elements."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weights of a model are stored, and in which type its linear kernels compute."""

    linear_bytes: float
    """Per weight of a linear kernel, scales and zero points included [D_W]."""
    expert_bytes: float
    """Bytes of an expert's weight."""
    plain_bytes: float
    """Per element of what is left as it is: embedding, LM head, router, norms, biases."""
    compute: str
    """A key of `GpuSpec.peak`; weight-only formats compute in 16 bits."""
    approximation: str = ""
    block_scaled: bool = False
    """FP8 with a scale for every block of weights."""
    unpacked_as: str = ""
    """int8 or nf4 where bitsandbytes unpacks the weights with kernels of its own in every step."""


def weight_format(quantisation: Mapping[str, Any], dtype: str) -> WeightFormat:
    """Read a ``quantization_config``; an empty one means weights as they are.

    Args:
        quantisation: of the config.json, or just ``{"quant_method": ...}``.
        dtype: of the activations, as the config names it.
    """
    element = DTYPE_BYTES.get(dtype, 2.0)
    plain = WeightFormat(element, element, element, "float32" if dtype == "float32" else "bfloat16")
    method = str(quantisation.get("quant_method", "")).removesuffix("_marlin")
    if not quantisation:
        return plain
    if method == "compressed-tensors":
        return _compressed_tensors(quantisation, plain)
    if "mxfp4" in method:  # gpt-oss: the experts alone
        return replace(plain, expert_bytes=MXFP4_BYTES)
    if method in ("awq", "gptq", "auto-round"):
        return _uniform(plain, _grouped_bytes(quantisation, zero_points=True), plain.compute)
    if method == "bitsandbytes":
        if quantisation.get("load_in_8bit"):
            return replace(_uniform(plain, 1.0, "int8"), unpacked_as="int8")
        # blocks of 64 with an FP32 scale
        return replace(_uniform(plain, NVFP4_BYTES, plain.compute), unpacked_as="nf4")
    if "fp4" in method or str(quantisation.get("quant_algo", "")).upper() == "NVFP4":
        return _uniform(plain, NVFP4_BYTES, "fp4")
    if "fp8" in method or method == "modelopt":
        scales = _block_scale_bytes(quantisation)
        return replace(_uniform(plain, 1 + scales, "fp8"), block_scaled=scales > 0)
    return replace(plain, approximation=f"{method} weights counted as not quantised")


def _uniform(plain: WeightFormat, element: float, compute: str) -> WeightFormat:
    return replace(plain, linear_bytes=element, expert_bytes=element, compute=compute)


def _block_scale_bytes(quantisation: Mapping[str, Any]) -> float:
    """FP32 scale of a block, per element; scales per tensor or channel are negligible."""
    rows, columns = quantisation.get("weight_block_size") or (0, 0)
    return 4 / (rows * columns) if rows and columns else 0.0


def _grouped_bytes(scheme: Mapping[str, Any], *, zero_points: bool) -> float:
    """Integers of some bits, with a 16-bit scale and perhaps a zero point for every group."""
    bits = int(scheme.get("bits") or scheme.get("num_bits") or 4)
    group = int(scheme.get("group_size") or (128 if "bits" in scheme or zero_points else -1))
    shared = SCALE_BITS + (bits if zero_points else 0)
    return (bits + (shared / group if group > 0 else 0)) / 8


def _compressed_tensors(quantisation: Mapping[str, Any], plain: WeightFormat) -> WeightFormat:
    """The format's first group: further groups are rare, and refine single layers."""
    groups = quantisation.get("config_groups") or {}
    if not groups:  # only the method's name is known
        return _uniform(plain, 1.0, "fp8")
    group = next(iter(groups.values()))
    weights, activations = group.get("weights") or {}, group.get("input_activations")
    if weights.get("type") == "float" and weights.get("num_bits") == 4:
        element = MXFP4_BYTES if weights.get("group_size") == 32 else NVFP4_BYTES
    elif weights:
        element = _grouped_bytes(weights, zero_points=not weights.get("symmetric", True))
    else:
        element = plain.linear_bytes
    return _uniform(plain, element, _compute(activations) if activations else plain.compute)


def _compute(activations: Mapping[str, Any]) -> str:
    """Type of the products where activations are quantised as well."""
    return f"{'fp' if activations.get('type') == 'float' else 'int'}{activations['num_bits']}"


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
    weights = weight_format(quantisation, "bfloat16")
    if weights.expert_bytes == MXFP4_BYTES:
        return "mxfp4"
    if weights.compute in ("fp8", "int8"):
        return weights.compute
    is_int4 = weights.compute == "bfloat16" and 0.5 <= weights.linear_bytes < NVFP4_BYTES
    return "int4" if is_int4 else ""
