"""What the demo says at its end about its estimates."""

from typing import Any

from llm_carbon_meter.demo.table import error_note, estimate_table, grams_table


def record(used: float, told: float, known: float | None, factor: float = 1.0) -> dict[str, Any]:
    """A final record by its joules: used, estimated before, and given length and company."""

    def estimate(joules: float) -> dict[str, Any]:
        calibrated = {"energy_joules": joules * factor}
        return {"method": "gnn", "energy_joules": joules, "calibrated": calibrated}

    return {
        "status": "final",
        "source": "measured",
        "energy_joules": used + 5.0,
        "idle_joules": 5.0,
        "estimate": estimate(told),
        "conditional": None if known is None else estimate(known),
    }


def test_errors_of_both_stages_on_both_bases() -> None:
    """Median with its sign and mean without; what is missing or not final is left out."""
    records = [
        record(10.0, 5.0, 8.0, 1.25),
        record(10.0, 20.0, 8.0, 1.25),
        record(0.0, 1.0, 1.0),
        {**record(10.0, 1.0, 1.0), "status": "provisional"},
        None,
    ]
    lines = [line.split() for line in estimate_table(records).splitlines()]
    assert [line[-4:] for line in lines[1:]] == [
        ["raw", "2", "-20%", "20%"],
        ["calibrated", "2", "+0%", "0%"],
        ["raw", "2", "+25%", "75%"],
        ["calibrated", "2", "+56.2%", "93.8%"],
    ]


def test_without_estimates_it_says_so() -> None:
    """No table of nothing."""
    assert estimate_table([{**record(1.0, 1.0, None), "estimate": None}, None]) == (
        "no request has an estimate"
    )


def test_modelled_power_is_called_so() -> None:
    """And that nothing of it is kept."""
    measured = record(10.0, 5.0, 8.0)
    assert error_note([measured]) == ""
    modelled = error_note([{**measured, "source": "modelled"}])
    assert "modelled, not measured" in modelled
    assert "kept as calibration" in modelled


def test_grams_by_the_source_of_the_intensity() -> None:
    """Operational and embodied apart, estimated and used apart; what is not known is no 0."""

    def emitted(source: str, estimated: float | None, embodied: float | None) -> dict[str, Any]:
        return {
            "source": "measured",
            "intensity_source": source,
            "intensity_g_per_kwh": 400.0,
            "zone": "DE",
            "covers": "GPUs alone",
            "operational_grams": 2.0,
            "embodied_grams": embodied,
            "estimate": {"operational_grams": estimated, "embodied_grams": None},
        }

    records = [emitted("table", 1.5, 0.25), emitted("table", 2.0, 0.5), emitted("x", 1.0, None)]
    lines = [line.split() for line in grams_table([*records, None]).splitlines()]
    assert [line[-5:] for line in lines[1:-1]] == [
        ["400", "2", "operational", "3.5", "4"],
        ["400", "2", "embodied", "missing", "0.75"],
        ["400", "1", "operational", "1", "2"],
        ["400", "1", "embodied", "missing", "missing"],
    ]
    assert lines[-1] == ["GPUs", "alone"]
