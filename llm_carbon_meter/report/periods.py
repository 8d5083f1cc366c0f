"""The time that a report is of: from a moment until before another, in a time zone."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

NAMED: Final = "today, yesterday, this-week, last-week, this-month, last-month, YYYY-MM, YYYY-MM-DD"


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` until before `until`, in seconds of Unix time."""

    since_s: float = -math.inf
    until_s: float = math.inf

    def __str__(self) -> str:
        sides = {"from": self.since_s, "until before": self.until_s}
        said = [f"{word} {iso(at)}" for word, at in sides.items() if math.isfinite(at)]
        return " ".join(said) or "whole log"


def iso(unix_s: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_zone(name: str) -> ZoneInfo:
    """A zone of the IANA data base.

    Raises:
        argparse.ArgumentTypeError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):  # also KeyError's child, of a name that is none
        pass
    except KeyError:
        pass
    raise argparse.ArgumentTypeError(
        f"{name!r} is no time zone of this host; give one such as UTC or Europe/Berlin"
    )


def moment(text: str, zone: tzinfo = UTC) -> float:
    """Unix time of an ISO 8601 date or time; of the time zone where it names none.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):  # the zone may lead out of all years
        raise argparse.ArgumentTypeError(
            f"{text!r} is no ISO 8601 time; give one such as 2026-03-01 or 2026-03-01T12:00:00Z"
        ) from None
    return at.timestamp()


def named_period(text: str, zone: tzinfo, now_s: float) -> Period:
    """A period of the calendar.

    Args:
        text: one of `NAMED`.
        zone: whose days, weeks (from Monday) and months are meant.
        now_s: Unix time.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    today = datetime.fromtimestamp(now_s, zone).date()
    try:
        first, end = _days(text, today)
        limits = [datetime.combine(day, time(), zone).timestamp() for day in (first, end)]
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no period; give one of {NAMED}") from None
    return Period(*limits)


def _days(text: str, today: date) -> tuple[date, date]:
    """The first day, and the one after the last."""
    monday = today - timedelta(today.weekday())
    month = today.replace(day=1)
    known: Mapping[str, tuple[date, date]] = {
        "today": (today, today + timedelta(1)),
        "yesterday": (today - timedelta(1), today),
        "this-week": (monday, monday + timedelta(7)),
        "last-week": (monday - timedelta(7), monday),
        "this-month": (month, next_month(month)),
        "last-month": ((month - timedelta(1)).replace(day=1), month),
    }
    if text in known:
        return known[text]
    if re.fullmatch(r"\d{4}-\d{2}", text):
        first = date.fromisoformat(f"{text}-01")
        return first, next_month(first)
    day = date.fromisoformat(text)
    return day, day + timedelta(1)


def next_month(first: date) -> date:
    """The first day of the month after."""
    return (first + timedelta(31)).replace(day=1)


STEPS: Final[Mapping[str, Callable[[datetime], datetime]]] = {
    "hour": lambda at: at.replace(minute=0, second=0, microsecond=0),
    "day": lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda at: at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}
"""The beginning of the one that a time is in."""
FORMATS: Final = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
"""Labels, as `datetime` and DuckDB write them."""


def label_format(step: str, zone: tzinfo) -> str:
    """Of a key of `STEPS`; hours beyond UTC have their offset, since one comes twice in autumn."""
    twice = step == "hour" and str(zone) != "UTC"
    return FORMATS[step] + (" %z" if twice else "")
