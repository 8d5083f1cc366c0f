"""Tables and numbers that people read."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.exporters.columns import aligned, figure, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0040231, "0.00402"),
        (24.51, "24.5"),
        (1234.5, "1230"),
        (999.6, "1000"),
        (0.5, "0.5"),
        (-46.666, "-46.7"),
        (0.0, "0"),
        (-0.0, "0"),
        (1e-9, "0.000000001"),
        (1.8190e-12, "1.82e-12"),
        (2.5e15, "2.5e+15"),
        (16_584_810_496_000, "16584810496000"),
        (float("nan"), "nan"),
    ],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    """Plain decimals where sizes are usual; integers are whole."""
    assert figure(value) == text


@given(st.floats(1e-9, 9e14))
def test_a_figure_is_plain_and_within_half_a_percent(value: float) -> None:
    """At most three significant digits, no exponent."""
    text = figure(value)
    assert set(text) <= set("0123456789.")
    assert len(Decimal(text).normalize().as_tuple().digits) <= 3
    assert float(text) == pytest.approx(value, rel=5.1e-3)


def test_signs_and_percentages() -> None:
    """A plus sign where it is asked for."""
    assert (figure(2.0, "+"), figure(-2.0, "+"), figure(7, "+")) == ("+2", "-2", "+7")
    assert (percent(0.56249, "+"), percent(0.0833333), percent(1.0)) == ("+56.2%", "8.33%", "100%")


def test_columns_stand_below_each_other() -> None:
    """Words to the left, figures to the right, no blanks at the end."""
    rows = [["GPU", "Wh", "note"], ["H100-PCIe", "1", ""], ["T4", "1230", "b"]]
    assert aligned(rows, left=(0, 2)).splitlines() == [
        "GPU          Wh  note",
        "H100-PCIe     1",
        "T4         1230  b",
    ]
