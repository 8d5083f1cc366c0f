"""What the physics needs of a GPU: its data sheet, as data/gpus.toml has it."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import SpecError

GIGA, TERA, MEGA = 1e9, 1e12, 1e6


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A data sheet: peaks per second without sparsity, watts, bytes."""

    name: str
    compute_ops_per_s: float
    """Tensor peak of FP16 and BF16."""
    vector_ops_per_s: float
    """FP32 without tensor cores."""
    tensor_ops_per_s: Mapping[str, float]
    """Tensor peaks of further types: tf32, fp8, int8, fp4, where the GPU has them."""
    bandwidth_bytes_per_s: float
    link: str
    """NVLink, or PCIe and its generation."""
    link_bytes_per_s: float
    """One direction."""
    board_watts: float
    idle_watts: float
    memory_bytes: float
    l2_bytes: float
    num_sms: int
    die_area_cm2: float
    """Of all dies of the package."""
    process_nm: float
    source: str

    def peak(self, kind: str) -> float:
        """Operations per second of a kind of arithmetic.

        Args:
            kind: ``vector``, or the type of a product: bfloat16, float32, fp8, int8, fp4. A type
                without tensor cores of its own computes in 16 bits.
        """
        if kind in ("vector", "float32"):
            return self.vector_ops_per_s
        return self.tensor_ops_per_s.get(kind, self.compute_ops_per_s)


@cache
def gpu_specs() -> Mapping[str, GpuSpec]:
    """Every GPU of the table, under its short name and NVML's names, as `_key` writes them."""
    text = resources.files("llm_carbon_meter.data").joinpath("gpus.toml").read_text("utf-8")
    specs: dict[str, GpuSpec] = {}
    for name, row in tomllib.loads(text).items():
        spec = _gpu(name, row)
        for alias in (name, *row["names"]):
            specs[_key(alias)] = spec
    return specs


def all_gpus() -> Sequence[GpuSpec]:
    """Every GPU of the table once, in its order."""
    return tuple({spec.name: spec for spec in gpu_specs().values()}.values())


def _gpu(name: str, row: Mapping[str, Any]) -> GpuSpec:
    """One table of the file, in SI units."""
    tensor, link = row["tensor_tflops"], row["link_gb_s"]
    return GpuSpec(
        name=name,
        compute_ops_per_s=tensor["fp16"] * TERA,
        vector_ops_per_s=row["vector_tflops"] * TERA,
        tensor_ops_per_s={kind: peak * TERA for kind, peak in tensor.items() if kind != "fp16"},
        bandwidth_bytes_per_s=row["bandwidth_gb_s"] * GIGA,
        link=row["link"],
        link_bytes_per_s=link * GIGA,
        board_watts=float(row["board_watts"]),
        idle_watts=float(row["idle_watts"]),
        memory_bytes=row["memory_gb"] * GIGA,
        l2_bytes=row["l2_mb"] * MEGA,
        num_sms=row["num_sms"],
        die_area_cm2=row["die_mm2"] / 100,
        process_nm=row["process_nm"],
        source=row["source"],
    )


def _key(name: str) -> str:
    """A GPU's name without what differs between its writings."""
    return name.casefold().removeprefix("nvidia ").replace("-", " ")


def gpu_spec(name: str) -> GpuSpec:
    """Look a GPU up by short name (``H100``) or as NVML names it (``NVIDIA H100 80GB HBM3``).

    Raises:
        SpecError: not in the table; names the nearest.
    """
    specs = gpu_specs()
    if _key(name) in specs:
        return specs[_key(name)]
    near = difflib.get_close_matches(_key(name), specs, n=1, cutoff=0.0)
    names = ", ".join(dict.fromkeys(spec.name for spec in specs.values()))
    raise SpecError(
        f"GPU {name!r} is not in data/gpus.toml; nearest is {specs[near[0]].name}; known: {names}"
    )


def assumed_gpu(config: Config, faults: Faults) -> GpuSpec:
    """The data sheet of the settings; the default's where the settings name no known GPU.

    Raises:
        SpecError: not known, and the settings are strict.
    """
    try:
        return gpu_spec(config.assume_gpu)
    except SpecError as error:
        if config.strict:
            raise
        default = Config().assume_gpu
        faults.note("settings", error, f"{default} is assumed instead.")
        return gpu_spec(default)
