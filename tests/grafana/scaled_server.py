"""vLLM's server with an energy model that the test can spoil: joules per token from a file."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llm_carbon_meter.physics.phases import PLAIN, Serving
from llm_carbon_meter.predictor import models as energy_models
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel, Numbers, PhaseEnergy
from llm_carbon_meter.records import DeploymentFactors
from llm_carbon_meter.testing.servers import entry_point

FILE_VARIABLE: Final = "TEST_JOULES_PER_TOKEN_FILE"


class JoulesPerToken:
    """Energy in proportion to the answer's tokens, shared by those who run together."""

    name = "gnn"
    facility = False
    out_of_domain = ""
    measured = False

    def bind(self, deployment: Deployment) -> "JoulesPerToken":
        return self

    def phases(
        self, concurrency: Numbers, prompt: Numbers, output: Numbers, serving: Serving = PLAIN
    ) -> PhaseEnergy:
        joules = float(Path(os.environ[FILE_VARIABLE]).read_text()) * output / concurrency
        return PhaseEnergy(0.1 * joules, 0.9 * joules, width=0.1)

    def adopt(self, factors: DeploymentFactors) -> None:
        """Nothing corrects it."""


def main() -> None:
    """Start vLLM's own module with this process's arguments."""
    models: dict[str, Callable[[], EnergyModel]] = {"gnn": JoulesPerToken}
    energy_models.ENERGY_MODELS = models  # type: ignore[misc]
    runpy.run_module(entry_point(), run_name="__main__", alter_sys=True)


# Children are spawned and import this file again.
if __name__ == "__main__":
    main()
