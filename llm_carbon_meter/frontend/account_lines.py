"""Lines of the request log that hold what no request is charged with: idle, overhead, unattributed.

Such a line has everything that an engine's GPUs used in a while, so that the requests' joules and
the rest add up to the counters'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llm_carbon_meter.exporters.log_line import ACCOUNTS, VERSION, Line, columns_of, place_columns
from llm_carbon_meter.records import Account, EngineTotals, Place

WHILE_S: Final = 900.0
"""A line ends at each multiple of it: days and hours of every time zone begin at one."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """Of a session of an engine."""

    since_s: float
    """Unix time until which lines were made."""
    told: Sequence[float]
    """Sums that these lines have."""
    latest: EngineTotals
    """Not told in full."""


class AccountLines:
    """Makes the lines of one server's engines from their cumulative totals.

    Args:
        model_name: as clients know it.
        place: of the API server.
        pue: power usage effectiveness.
        covers: what the figures are of, in words.
        begun_s: Unix time at which the server began.
    """

    def __init__(
        self, model_name: str, place: Place, pue: float, covers: str, begun_s: float
    ) -> None:
        self._model_name = model_name
        self._place = place
        self._pue = pue
        self._covers = covers
        self._begun_s = begun_s
        self._engines: dict[int, _Heard] = {}

    def hear(self, totals: EngineTotals, now_s: float) -> list[Line]:
        """Totals came at a Unix time; the lines that are due with them."""
        lines, heard = [], self._engines.get(totals.engine)
        if heard is not None and heard.latest.session != totals.session:
            lines += self._line(heard, now_s)
            heard = _Heard(now_s, (), totals)
        elif heard is None:
            heard = _Heard(self._begun_s, (), totals)
        elif _sums(totals)[0] < _sums(heard.latest)[0]:  # came late
            return lines
        heard = _Heard(heard.since_s, heard.told, totals)
        if now_s // WHILE_S > heard.since_s // WHILE_S:
            lines += self._line(heard, now_s)
            heard = _Heard(now_s, _sums(totals), totals)
        self._engines[totals.engine] = heard
        return lines

    def rest(self, now_s: float) -> list[Line]:
        """What no line has yet, at the server's end."""
        return [line for heard in self._engines.values() for line in self._line(heard, now_s)]

    def _line(self, heard: _Heard, now_s: float) -> list[Line]:
        totals, sums = heard.latest, _sums(heard.latest)
        told = heard.told or (0.0,) * len(sums)
        energy, operational, embodied, *accounts = (
            each - before for each, before in zip(sums, told, strict=True)
        )
        if not energy:
            return []
        names = [f"{account.label}_joules" for account in Account]
        return [
            columns_of(
                {
                    "version": VERSION,
                    "kind": ACCOUNTS,
                    "model": self._model_name,
                    "engine": totals.engine,
                    "arrived_unix_s": heard.since_s,
                    "until_unix_s": now_s,
                    "source": totals.source,
                    "energy_joules": energy,
                    **dict(zip(names, accounts, strict=True)),
                    "operational_grams": operational,
                    "embodied_grams": embodied if totals.embodied_grams else None,
                    "zone": totals.intensity.zone,
                    "intensity_g_per_kwh": totals.intensity.grams_per_kwh,
                    "intensity_source": totals.intensity.provider,
                    "pue": self._pue,
                    "boundary": totals.boundary,
                    "covers": totals.covers or self._covers,
                    **place_columns(self._place),
                }
            )
        ]


def _sums(totals: EngineTotals) -> tuple[float, ...]:
    """Joules, operational and embodied grams, and the joules of each account: all cumulative."""
    accounts = [
        math.fsum(gpu.account_joules[account] for gpu in totals.gpus) for account in Account
    ]
    return (
        math.fsum(accounts),
        math.fsum(totals.account_grams),
        math.fsum(totals.embodied_grams),
        *accounts,
    )
