"""What a campaign tells the process that measures a model, and hears at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llm_carbon_meter.campaign.plan import Load
from llm_carbon_meter.campaign.rows import Row
from llm_carbon_meter.records import Source

WEIGHTS: Final = "random, normal at the initialiser's scale"
PREFILL: Final = "prefill"
"""An answer of one token comes from the prefill."""
WHOLE: Final = "prefill+decode"
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

    @property
    def identity(self) -> Row:
        """The columns of rows that name what is repeated, without load and phase."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "quantisation": "none",
            "tensor_parallel": self.tensor_parallel,
            "weights": WEIGHTS,
            "gpu": self.gpu,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "source": Source.MEASURED if self.gpus else Source.MODELLED,
        }


@dataclass(frozen=True, slots=True)
class Done:
    """The worker's last word."""

    problem: str = ""
