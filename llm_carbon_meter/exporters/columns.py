"""Tables and numbers as text for people; files and headers keep all digits."""

from collections.abc import Collection, Sequence
from decimal import Decimal


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Lines of a table, a heading first.

    Args:
        rows: cells; every row has the same number.
        left: columns of words; the others hold figures and stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def figure(value: float, sign: str = "-") -> str:
    """A number for people: at most three significant digits, no exponent; integers stay whole.

    Args:
        value: sizes that nobody reads as they are, below 1e-9 or from 1e15, keep an exponent.
        sign: ``+`` to have one before positive numbers too.
    """
    if isinstance(value, int):
        return f"{value:{sign}d}"
    rounded = f"{value or 0.0:{sign}.3g}"  # zero has no sign
    usual = not value or 1e-9 <= abs(value) < 1e15
    return f"{Decimal(rounded):{sign}f}" if usual else rounded


def yes_or_no(fact: bool) -> str:
    """A fact in a table."""
    return "yes" if fact else "no"


def first_unmeasured(measured: bool, name: str, amount: str) -> list[str]:
    """A line about the first of a sorted table where it was never measured; else none."""
    if measured:
        return []
    return [f"never measured, only estimated: the first, {name}, with its {amount}"]


def percent(ratio: float, sign: str = "-") -> str:
    """A ratio as a percentage, with the digits of `figure`."""
    return figure(100.0 * ratio, sign) + "%"
