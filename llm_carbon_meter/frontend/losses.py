"""Requests whose final figure never comes: their meter's process was killed, or a message was lost.

They get a record all the same. It has what was heard of them, and says that joules are missing.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llm_carbon_meter.frontend.exchanges import Exchange, Member, Registry
from llm_carbon_meter.records import (
    AccountJoules,
    EngineTotals,
    Outcome,
    Quality,
    RequestEnergy,
    Source,
    Status,
)

LOST_AFTER_S: Final = 30.0
"""A final figure comes within seconds of its provisional one."""
REPLACED_AFTER_S: Final = 5.0
"""Where another process meters the engine by now, it says no more of what it did not see."""
LOOK_S: Final = 1.0
"""Exchanges are looked through this often."""


class Losses:
    """Finds the exchanges of an API server that wait in vain, while its engines are heard.

    Args:
        exchanges: in flight.
    """

    def __init__(self, exchanges: Registry) -> None:
        self._exchanges = exchanges
        self._sessions: dict[int, str] = {}
        """Of the meters' processes, by engine."""
        self._replaced_s: dict[int, float] = {}
        """When the last one took its place, by engine."""
        self._looked_s = float("-inf")
        self.source = Source.MODELLED
        """Of what the engines' meters say."""

    def hear(self, totals: EngineTotals) -> Sequence[Exchange]:
        """A meter's process lives; those that will not be heard of again."""
        now_s = time.monotonic()
        if self._sessions.setdefault(totals.engine, totals.session) != totals.session:
            self._sessions[totals.engine] = totals.session
            self._replaced_s[totals.engine] = now_s
        self.source = totals.source
        if now_s - self._looked_s < LOOK_S:
            return ()
        self._looked_s = now_s
        return [one for one in self._exchanges.unfinished() if self._is_lost(one, now_s)]

    def _is_lost(self, exchange: Exchange, now_s: float) -> bool:
        if exchange.closed_s is None:
            return False
        replaced_s = self._replaced_for_s(exchange)
        if exchange.begun_s < replaced_s:
            return now_s - max(exchange.closed_s, replaced_s) > REPLACED_AFTER_S
        # Without any figure it may be an answer in the background that is still made.
        return exchange.has_energy() and now_s - exchange.closed_s > LOST_AFTER_S

    def _replaced_for_s(self, exchange: Exchange) -> float:
        """When the meter of an exchange's engines was replaced; of any, where none was heard."""
        heard = {member.energy.engine for member in exchange.members.values() if member.energy}
        engines = heard & self._replaced_s.keys() if heard else self._replaced_s.keys()
        return max((self._replaced_s[engine] for engine in engines), default=float("-inf"))

    def figures(self, exchange: Exchange) -> Sequence[RequestEnergy]:
        """The last of each engine request that has no final one."""
        return [
            self._figure(member)
            for member in exchange.members.values()
            if member.energy is None or member.energy.status is not Status.FINAL
        ]

    def _figure(self, member: Member) -> RequestEnergy:
        known = member.energy or _nothing_heard(member.internal_id, self.source)
        return replace(known, status=Status.FINAL, quality=Quality.RESET, uncertainty=None)


def _nothing_heard(internal_id: str, source: Source) -> RequestEnergy:
    return RequestEnergy(
        internal_id,
        engine=0,
        status=Status.FINAL,
        source=source,
        quality=Quality.RESET,
        outcome=Outcome.FAILED,
        accounts=AccountJoules(),
        operational_grams=0.0,
        gpu_seconds=0.0,
        embodied_grams=None,
        prompt_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        num_steps=0,
        mean_running=0.0,
        first_step_s=0.0,
        last_step_s=0.0,
    )
