"""What went wrong where: each place is logged once, counted always, and never stops serving."""

import logging
from collections import Counter

logger = logging.getLogger("llm_carbon_meter")


class Faults:
    """Counts of errors by place, for ``errors_total{where}``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, where: str, error: BaseException | str, advice: str = "") -> None:
        """Count an error; log the first of its place."""
        self.counts[where] += 1
        if self.counts[where] == 1:
            text = f"{error}" if isinstance(error, str) else f"{type(error).__name__}: {error}"
            logger.warning(
                "llm_carbon_meter: %s: %s %s Serving goes on; further errors here are only counted.",
                where,
                text.rstrip(".") + ".",
                advice,
                exc_info=None if isinstance(error, str) else error,
            )
