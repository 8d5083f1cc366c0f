"""The factors of units.py are exact."""

from llm_carbon_meter import units


def test_a_watt_hour_is_an_hour_of_a_watt() -> None:
    """3600 J make one watt-hour, a thousand of those a kilowatt-hour."""
    assert units.watt_hours(3600.0) == 1.0
    assert units.watt_hours(0.0) == 0.0
    assert 1000 * units.JOULES_PER_WATT_HOUR == units.JOULES_PER_KILOWATT_HOUR


def test_prefixes() -> None:
    """NVML counts in thousandths."""
    assert 1500 * units.MILLI == 1.5
    assert 1000 * units.MICRO == units.MILLI
