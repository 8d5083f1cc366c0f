"""Which data sheet a server takes, and at which power limit."""

from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.deployed_gpu import DeployedGpu, gpu_of
from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.records import SpecError

H100 = gpu_spec("H100")
INSTANCE = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"


def deployed(name: str, limit: float | None = None, **settings: Any) -> DeployedGpu:
    """Of a server whose GPU has a name and a power limit."""
    fields: dict[str, str | float] = {"gpu": name}
    if limit is not None:
        fields["power_limit_watts"] = limit
    return gpu_of(Config(**settings), fields, Faults())


def test_a_known_gpu_has_its_own_sheet_whatever_is_assumed() -> None:
    """The setting is for GPUs that nobody knows."""
    assert (
        deployed("Tesla T4") == deployed("Tesla T4", assume_gpu="L4") == (gpu_spec("T4"), "", None)
    )


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("", "no GPU was found, L4 is assumed"),
        ("AMD Instinct MI300X", "the GPU AMD Instinct MI300X is not known, L4 is assumed"),
    ],
)
def test_another_one_is_assumed_only_where_there_is_none_or_none_known(
    name: str, remark: str
) -> None:
    """It is said, and why the name has no sheet."""
    found = deployed(name, assume_gpu="L4")
    assert (found.spec, found.remark) == (gpu_spec("L4"), remark)
    assert (found.unknown is not None) == bool(name)


def test_a_lower_limit_changes_nothing_else() -> None:
    """The board's watts stay what they were: they are the unit of what steps draw."""
    found = deployed("NVIDIA H100 80GB HBM3", 500.0).spec
    assert found == at_limit(H100, 500.0)
    assert (found.limit_watts, found.board_watts, found.idle_watts) == (500.0, 700.0, 70.0)
    assert found.is_limited
    assert found.label == "H100 at 500 W"
    assert not H100.is_limited
    assert H100.label == "H100"


@pytest.mark.parametrize("limit", [700.0, 700.0000001, 900.0])
def test_a_limit_that_is_not_lower_is_the_data_sheet_s(limit: float) -> None:
    """A board may be allowed more than its data sheet says; what it draws then nobody knows."""
    assert deployed("H100", limit) == (H100, "", None)


@pytest.mark.parametrize("limit", [0.0, 70.0, -1.0])
def test_a_limit_that_cannot_be_is_not_taken_and_said(limit: float) -> None:
    """A GPU draws more when it is idle."""
    found = deployed("H100", limit)
    assert found.spec == H100
    assert f"not taken: a power limit of {limit:g} W" in found.remark


def test_a_part_has_its_part_of_the_gpu_s_limit() -> None:
    """NVML has one limit for the whole GPU; a setting that says so makes the whole GPU ours."""
    instance = deployed(INSTANCE, 490.0).spec
    assert instance.limit_watts == pytest.approx(70.0)
    assert instance.label == "H100 MIG 1g.10gb at 490 W"
    assert deployed(INSTANCE, 700.0).spec == gpu_spec(INSTANCE)
    assert deployed(INSTANCE, 490.0, mig_parent=True).spec == at_limit(H100, 490.0)


@pytest.mark.parametrize("watts", [-1.0, 0.0, 70.0, 700.1, 1e9, float("nan"), float("inf")])
def test_a_limit_is_between_idle_and_board_power(watts: float) -> None:
    """Everything else is refused with both."""
    with pytest.raises(SpecError, match="cannot be that of H100, which draws 70 W idle and 700 W"):
        at_limit(H100, watts)


def test_a_wrong_setting_stops_a_strict_start() -> None:
    """Also where the GPU is known: whoever reads the setting would be misled."""
    with pytest.raises(SpecError, match="'H1000' is not in"):
        deployed("Tesla T4", assume_gpu="H1000", strict=True)
    faults = Faults()
    assert gpu_of(Config(assume_gpu="H1000"), {"gpu": ""}, faults).spec == H100
    assert faults.counts == {"settings": 1}
