"""What NVML says of an engine's GPUs when it starts."""

from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.power.nvml.engine_gpus import EngineGpus, engine_gpus
from llm_carbon_meter.records import PowerError
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from tests.support.scripted_nvml import MIG_UUID, uuid_of

NAME = "NVIDIA B300 SXM6 AC"
ALWAYS = "0 9e9"


def test_name_and_limit_are_those_that_nvml_prints(stub: Any) -> None:
    """In watts; by index and by UUID."""
    stub.steady(100, extra=(f"name {NAME}", "limit 0 900.5"))
    assert engine_gpus(["0"]) == engine_gpus([uuid_of(0)]) == EngineGpus(NAME, 900.5)


def test_of_several_gpus_the_lowest_limit_counts(stub: Any) -> None:
    """The group waits for its slowest GPU; one that does not say is left out."""
    stub.steady(100, 100, 100, extra=("limit 0 700", "limit 2 500"))
    assert engine_gpus(["0", "1", "2"]).power_limit_watts == 500
    assert engine_gpus(["1"]).power_limit_watts is None


def test_a_mig_instance_has_a_name_of_its_own_and_its_gpu_s_limit(stub: Any) -> None:
    """NVML has no limit for an instance."""
    name = "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
    stub.steady(100, extra=(f"instance {name}", f"mig 0 {ALWAYS}", "limit 0 300"))
    assert engine_gpus([MIG_UUID]) == EngineGpus(name, 300)


@pytest.mark.parametrize("devices", [["1"], ["GPU-none"], []])
def test_a_gpu_that_is_not_there_is_an_error(stub: Any, devices: list[str]) -> None:
    """The session ends all the same."""
    stub.steady(100)
    with pytest.raises(PowerError):
        engine_gpus(devices)
    assert engine_gpus(["0"]).name


def test_a_deployment_has_the_engine_s_name_and_nvml_s_limit(stub: Any) -> None:
    """CUDA's first GPU need not be NVML's: the engine's own word comes first."""
    stub.steady(100, extra=(f"name {NAME}", "limit 0 900"))
    fields = {"gpu": "NVIDIA B200", "power_limit_watts": 900.0}
    assert gpu_fields(Config(), lambda: ["0"], "NVIDIA B200") == fields
    assert gpu_fields(Config(), lambda: ["0"]) == fields | {"gpu": NAME}


def test_a_name_that_nobody_knows_is_no_name(stub: Any) -> None:
    """An engine that knows no GPU has none then; nothing is counted as an error."""
    stub.steady(100)
    assert gpu_fields(Config(), lambda: ["0"]) == {"gpu": ""}
    assert gpu_fields(Config(), lambda: ["0"], "NVIDIA Next") == {"gpu": "NVIDIA Next"}


@pytest.mark.parametrize("power", ["modelled", "replay:trace.csv"])
def test_nvml_is_not_asked_where_the_settings_do_not_want_it(stub: Any, power: str) -> None:
    """Power is then that of no GPU of this host."""
    stub.steady(100, extra=("limit 0 500",))
    assert gpu_fields(Config(power=power), lambda: ["0"], "L4") == {"gpu": "L4"}


def test_a_host_without_nvml_has_what_the_engine_knows(stub: Any) -> None:
    """A missing GPU or driver is the meter's to say."""
    stub.steady(100)
    assert gpu_fields(Config(), lambda: ["7"], "L4") == {"gpu": "L4"}
    assert gpu_fields(Config(), list) == {"gpu": ""}
