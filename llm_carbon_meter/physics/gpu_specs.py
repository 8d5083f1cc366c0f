"""What the physics needs of a GPU: its data sheet, as data/gpus.toml has it.

A MIG instance and a virtual GPU get what their profile leaves of the data sheet. Which one a server
takes: deployed_gpu.py.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from llm_carbon_meter.physics.gpu_parts import Part, mig_instance, virtual_gpu
from llm_carbon_meter.records import SpecError

GIGA, TERA, MEGA = 1e9, 1e12, 1e6
MEBI: Final = 2.0**20
MEMORY_SLICES: Final = 8
"""In which MIG divides memory and its bandwidth; 4 are pairs of them."""
ROUNDED: Final = 1.05
"""By so much the memory in a profile's name may exceed the data sheet's."""
SIMILAR: Final = 0.5
"""Of two names, from which on one may be meant by the other (difflib)."""
OTHERS: Final = re.compile(
    r"\b(amd|instinct|radeon|mi\d{3}[a-z]*|intel|gaudi\d?|hl-?\d+|tpu|trainium\d?|inferentia\d?"
    r"|ascend)\b",
    re.IGNORECASE,
)
"""Words in the names of accelerators that are not NVIDIA's."""


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
    """NVLink, PCIe and its generation, or a network."""
    link_bytes_per_s: float
    """One direction."""
    board_watts: float
    """Of the data sheet; of a MIG instance its part of them."""
    limit_watts: float
    """No more is drawn: ``board_watts``, unless somebody has set a lower limit."""
    idle_watts: float
    memory_bytes: float
    """As the data sheet rounds it."""
    total_bytes: float
    """As NVML reports it, error correction on; ``memory_bytes`` where that is not known."""
    l2_bytes: float
    num_sms: int
    die_area_cm2: float
    """Of all dies of the package."""
    process_nm: float
    source: str
    mig_slices: int = 0
    """Compute slices that MIG cuts the GPU into; 0 without MIG."""
    part: float = 1.0
    """Of the whole GPU's computing and power."""
    approximation: str = ""
    """What is only nearly so of a part of a GPU; empty for a whole one."""

    @property
    def is_limited(self) -> bool:
        """Whether the GPU may draw less than its data sheet says."""
        return self.limit_watts < self.board_watts

    @property
    def label(self) -> str:
        """Its name, with its power limit where that is lower than the data sheet's."""
        limit_watts = self.limit_watts / self.part
        return f"{self.name} at {limit_watts:g} W" if self.is_limited else self.name

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
    specs: dict[str, GpuSpec] = {}
    for name, row in _table().items():
        spec = _gpu(name, row)
        for alias in (name, *row["names"]):
            specs[_key(alias)] = spec
    return specs


def all_gpus() -> Sequence[GpuSpec]:
    """Every GPU of the table once, in its order."""
    return tuple({spec.name: spec for spec in gpu_specs().values()}.values())


@cache
def _virtual_names() -> Mapping[str, tuple[str, str]]:
    """What vGPU software calls a GPU, as `_key` writes it -> the same, and its short name."""
    return {
        _key(alias): (alias, name)
        for name, row in _table().items()
        for alias in row.get("vgpu", ())
    }


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("llm_carbon_meter.data").joinpath("gpus.toml").read_text("utf-8")
    return tomllib.loads(text)


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
        limit_watts=float(row["board_watts"]),
        idle_watts=float(row["idle_watts"]),
        memory_bytes=row["memory_gb"] * GIGA,
        total_bytes=row["nvml_mib"] * MEBI if "nvml_mib" in row else row["memory_gb"] * GIGA,
        l2_bytes=row["l2_mb"] * MEGA,
        num_sms=row["num_sms"],
        die_area_cm2=row["die_mm2"] / 100,
        process_nm=row["process_nm"],
        source=row["source"],
        mig_slices=row.get("mig_slices", 0),
    )


def _key(name: str) -> str:
    """A GPU's name without what differs between its writings."""
    return name.casefold().removeprefix("nvidia ").replace("-", " ")


def gpu_spec(name: str) -> GpuSpec:
    """Look a GPU up by short name (``H100``) or as NVML names it (``NVIDIA H100 80GB HBM3``).

    Names of MIG instances and of virtual GPUs give that part of the GPU.

    Raises:
        SpecError: not in the table, or there is no such part; names the nearest.
    """
    spec = gpu_specs().get(_key(name))
    if spec is not None:
        return spec
    instance, virtual = mig_instance(name), virtual_gpu(name)
    if instance is not None:
        whole = gpu_specs().get(_key(instance.whole))
        if whole is not None:
            return _instance(whole, instance, f"{whole.name} MIG {instance.profile}")
    elif virtual is not None and _key(virtual.whole) in _virtual_names():
        return _virtual(virtual)
    part = instance or virtual
    raise SpecError(_unknown(name, part.whole if part else name))


def is_known(name: str) -> bool:
    """Whether there is a data sheet under a name."""
    try:
        gpu_spec(name)
    except SpecError:
        return False
    return True


def _instance(whole: GpuSpec, part: Part, name: str) -> GpuSpec:
    """A MIG instance: its share of the compute slices is its share of arithmetic and power."""
    assert part.slices is not None
    slices = part.slices
    if not 1 <= slices <= whole.mig_slices:
        can = f"MIG cuts it into {whole.mig_slices}" if whole.mig_slices else "it has no MIG"
        raise SpecError(f"GPU {name!r} has {slices} slices of {whole.name}; {can}")
    _check_memory(whole, part, name)
    computing = slices / whole.mig_slices
    memory = part.memory_gb * GIGA / whole.memory_bytes
    memory_slices = min(max(round(MEMORY_SLICES * memory), 1), MEMORY_SLICES)
    streaming = memory_slices / MEMORY_SLICES
    return replace(
        whole,
        name=name,
        compute_ops_per_s=whole.compute_ops_per_s * computing,
        vector_ops_per_s=whole.vector_ops_per_s * computing,
        tensor_ops_per_s={kind: peak * computing for kind, peak in whole.tensor_ops_per_s.items()},
        bandwidth_bytes_per_s=whole.bandwidth_bytes_per_s * streaming,
        board_watts=whole.board_watts * computing,
        limit_watts=whole.limit_watts * computing,
        idle_watts=whole.idle_watts * computing,
        memory_bytes=part.memory_gb * GIGA,
        total_bytes=part.memory_gb * GIGA,
        l2_bytes=whole.l2_bytes * streaming,
        num_sms=round(whole.num_sms * computing),
        part=computing,
        approximation=f"{slices} of {whole.mig_slices} slices of {whole.name}, with as much of its "
        f"power, and {memory_slices} of {MEMORY_SLICES} of its memory",
    )


def _virtual(part: Part) -> GpuSpec:
    """A virtual GPU: its memory, and the whole GPU's rates and power where it takes turns."""
    alias, short = _virtual_names()[_key(part.whole)]
    whole, name = gpu_specs()[_key(short)], f"{alias}-{part.profile}"
    if part.slices is not None:
        return _instance(whole, part, name)
    _check_memory(whole, part, name)
    return replace(
        whole,
        name=name,
        memory_bytes=part.memory_gb * GIGA,
        total_bytes=part.memory_gb * GIGA,
        approximation=f"a virtual GPU, taken to have the whole {whole.name} to itself",
    )


def _check_memory(whole: GpuSpec, part: Part, name: str) -> None:
    if not 0 < part.memory_gb * GIGA <= ROUNDED * whole.memory_bytes:
        raise SpecError(
            f"GPU {name!r} has {part.memory_gb:g} GB; {whole.name} has "
            f"{whole.memory_bytes / GIGA:g} GB"
        )


def _unknown(name: str, whole: str) -> str:
    """Why there is no data sheet of a name, and what there is.

    Args:
        name: the GPU's.
        whole: what it is a part of, by its name, or the same.
    """
    names = ", ".join(dict.fromkeys(spec.name for spec in gpu_specs().values()))
    if OTHERS.search(name.replace("_", " ")):
        return f"GPU {name!r} is no NVIDIA GPU, and unknown here; known: {names}"
    written = {key: spec.name for key, spec in gpu_specs().items()}
    written |= {key: alias for key, (alias, _) in _virtual_names().items() if key not in written}
    near = difflib.get_close_matches(_key(whole), written, n=1, cutoff=SIMILAR)
    nearest = f"nearest is {written[near[0]]}; " if near else ""
    return f"GPU {name!r} is not in data/gpus.toml; {nearest}known: {names}"


def at_limit(gpu: GpuSpec, watts: float) -> GpuSpec:
    """A GPU whose power limit is set lower than its data sheet's.

    Only ``limit_watts`` differs: a step that stays below the limit costs what it did.

    Args:
        gpu: the data sheet.
        watts: of the whole GPU, also where ``gpu`` is a part of it.

    Raises:
        SpecError: no power between the GPU's idle power and that of its board.
    """
    idle, board = gpu.idle_watts / gpu.part, gpu.board_watts / gpu.part
    if not idle < watts <= board * (1 + 1e-9):
        raise SpecError(
            f"a power limit of {watts:g} W cannot be that of {gpu.name}, which draws {idle:g} W "
            f"idle and {board:g} W at most"
        )
    return replace(gpu, limit_watts=min(watts * gpu.part, gpu.board_watts))
