"""What the meter's process makes of an engine's setup."""

from types import SimpleNamespace
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.servers.shared import meter_main
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.steps import StepDecoder


@pytest.mark.parametrize(
    ("deployment", "idle_watts"),
    [
        ({"gpu": "Tesla T4"}, 7.0),
        ({"gpu": "NVIDIA A100-SXM4-80GB MIG 1g.10gb"}, 60 / 7),
        ({"gpu": ""}, 7.0),
        ({"gpu": "NVIDIA GB10"}, 14.0),
    ],
)
def test_power_without_a_sensor_is_of_the_gpu_s_own_sheet(
    deployment: dict[str, Any], idle_watts: float
) -> None:
    """The assumed one's, an L4's, only where there is no GPU."""
    faults = Faults()
    setup = Setup(Config(power="modelled", assume_gpu="L4"), 0, [], 0, 1, None, 1, 0.0, deployment)
    publisher: Any = SimpleNamespace(publish=list)
    meter = meter_main._meter(setup, StepDecoder(faults), publisher, faults)
    (reading,) = meter._power.read()
    assert reading.watts == pytest.approx(idle_watts)


def test_attribution_keeps_to_the_limit_of_the_deployment() -> None:
    """It is that of the engine's GPUs, as every record has it."""
    deployment = {"gpu": "NVIDIA H100 80GB HBM3", "power_limit_watts": 500.0}
    setup = Setup(Config(power="modelled"), 0, [], 0, 1, None, 1, 0.0, deployment)
    publisher: Any = SimpleNamespace(publish=list)
    meter = meter_main._meter(setup, StepDecoder(Faults()), publisher, Faults())
    assert meter._ledger._model.gpu == at_limit(gpu_spec("H100"), 500.0)
