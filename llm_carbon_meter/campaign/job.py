"""What a campaign tells the process that measures a model, and hears at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llm_carbon_meter.campaign.plan import Load, Plan, is_checkpoint, repetition_s
from llm_carbon_meter.campaign.rows import Row
from llm_carbon_meter.records import Source
from llm_carbon_meter.training.data.campaign_columns import PREFILL, WHOLE

RANDOM: Final = "random, normal at the initialiser's scale"
CHECKPOINT: Final = "checkpoint"
PHASES: Final = (PREFILL, WHOLE)


@dataclass(frozen=True, slots=True)
class Occasion:
    """A load and a phase, and how many more repetitions of it are wanted."""

    load: Load
    phase: str
    done: int
    """Good repetitions of an earlier run."""
    wanted: int

    @property
    def run(self) -> Load:
        """What the engine is asked for."""
        return self.load if self.phase == WHOLE else self.load._replace(output_tokens=1)


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure of one model."""

    engine: str
    engine_version: str
    model: str
    checkpoint: str
    """Folder of its weights; empty where they are random."""
    config: Mapping[str, Any]
    dtype: str
    tensor_parallel: int
    gpus: Sequence[str]
    """None: joules are modelled."""
    gpu: str
    """What they are, or whose data sheet gives the joules."""
    least_s: float
    deadline_s: float = 0.0
    """Monotonic; no repetition is begun that would end later."""
    occasions: Sequence[Occasion] = ()
    changes: str = ""
    """In which the configuration differs from the model of that name, as JSON."""
    source: str = ""
    """Where joules come from; empty: measured on GPUs, else modelled."""

    @classmethod
    def of(
        cls, plan: Plan, model: str, config: Mapping[str, Any], gpu: str, engine_version: str
    ) -> Self:
        """A job of a plan, without occasions."""
        return cls(
            engine=plan.engine,
            engine_version=engine_version,
            model=Path(model).name,
            checkpoint=model if is_checkpoint(model) else "",
            config=config,
            dtype=plan.dtype,
            tensor_parallel=plan.tensor_parallel,
            gpus=plan.gpus,
            gpu=gpu,
            least_s=repetition_s(gpu) if plan.least_s is None else plan.least_s,
        )

    @property
    def identity(self) -> Row:
        """The columns of rows that name what is repeated, without load and phase."""
        return {
            "model": self.model,
            "changes": self.changes,
            "dtype": self.dtype,
            "quantisation": "none",
            "tensor_parallel": self.tensor_parallel,
            "weights": CHECKPOINT if self.checkpoint else RANDOM,
            "gpu": self.gpu,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "source": self.source or (Source.MEASURED if self.gpus else Source.MODELLED),
        }


@dataclass(frozen=True, slots=True)
class Done:
    """The worker's last word."""

    problem: str = ""
