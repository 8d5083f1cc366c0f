"""What went wrong where: each place is logged once, counted always, and never stops serving."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from llm_carbon_meter.records import MeterError

logger = logging.getLogger("llm_carbon_meter")
P = ParamSpec("P")
T = TypeVar("T")


class Faults:
    """Counts of errors by place, for ``errors_total{where}``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._listener: Callable[[str], None] | None = None

    def listen(self, listener: Callable[[str], None]) -> None:
        """Tell an exporter of every error, those before included."""
        for where in self.counts.elements():
            listener(where)
        self._listener = listener

    def note(self, where: str, error: BaseException | str, advice: str = "") -> None:
        """Count an error; log the first of its place."""
        self.counts[where] += 1
        if self._listener is not None:
            self._listener(where)
        if self.counts[where] == 1:
            text = str(error)
            if not isinstance(error, str | MeterError):
                text = f"{type(error).__name__}: {error}"
            logger.warning(
                "llm_carbon_meter: %s: %s %s Serving goes on; more errors here are only counted.",
                where,
                text.rstrip(".") + ".",
                advice,
                # Our own errors explain themselves; others need their traceback.
                exc_info=None if isinstance(error, str | MeterError) else error,
            )

    def attempt(
        self, where: str, do: Callable[P, T], *given: P.args, **named: P.kwargs
    ) -> T | None:
        """Do something that, failing, shall take nothing else with it.

        Returns:
            What it gives; None where it failed.
        """
        try:
            return do(*given, **named)
        except Exception as error:  # noqa: BLE001 - boundary: the next of its kind is done all the same
            self.note(where, error)
            return None
