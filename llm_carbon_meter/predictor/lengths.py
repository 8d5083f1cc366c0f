"""How long answers are: the distribution that was served here, and a prior before that."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

MEMORY: Final = 2048
"""Answers remembered."""
PRIOR_WEIGHT: Final = 101
"""The prior counts as this many answers, and is forgotten as real ones come."""
REFRESH: Final = 32
"""The sorted copy is renewed after this many new answers."""


MOST_ADAPTERS: Final = 256
"""Whose lengths are remembered; those beyond have the model's."""


class LengthForecast(NamedTuple):
    """Tokens an answer will have."""

    mean: float
    low: float
    """10 % of answers are shorter."""
    high: float
    """10 % of answers are longer."""


class OutputLengths:
    """The lengths of recent answers of one model.

    Args:
        prior: quantiles at equal steps, believed until answers have been seen.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        points = np.linspace(0, 1, PRIOR_WEIGHT)
        self._prior = np.quantile(np.asarray(prior, np.float64), points)
        self._served: deque[int] = deque(maxlen=MEMORY)
        self._sorted = np.sort(self._prior)
        self._unseen = 0

    def observe(self, output_tokens: int, *, cut: bool = False) -> None:
        """Remember the length of an answer.

        Args:
            output_tokens: that it had when it ended.
            cut: it ended at its limit. It would have been longer: like the middle one of the
                longer answers that are known.
        """
        if cut:
            longer = self._sorted[np.searchsorted(self._sorted, output_tokens, "right") :]
            output_tokens = int(longer[len(longer) // 2]) if len(longer) else output_tokens
        self._served.append(output_tokens)
        self._unseen += 1
        if self._unseen >= REFRESH:
            self._unseen = 0
            prior = self._prior[:: 1 + len(self._served) // REFRESH]
            self._sorted = np.sort(np.concatenate((prior, np.array(self._served, np.float64))))

    def forecast(self, max_tokens: int | None) -> LengthForecast:
        """Mean and 10 % and 90 % quantiles, cut at ``max_tokens``."""
        lengths = self._sorted if max_tokens is None else np.minimum(self._sorted, max_tokens)
        last = len(lengths) - 1
        mean = float(np.add.reduce(lengths)) / len(lengths)  # a third of the time of known.mean()
        low, high = float(lengths[round(0.1 * last)]), float(lengths[round(0.9 * last)])
        # Cut hard, the mean can lie below the 10 % quantile: an interval holds its own estimate.
        return LengthForecast(mean, min(low, mean), max(high, mean))


class AdapterLengths:
    """The lengths of a model's answers, and of each adapter's by themselves.

    Args:
        prior: as of `OutputLengths`.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._prior = prior
        self._lengths: dict[str, OutputLengths] = {}

    def of(self, adapter: str) -> OutputLengths:
        """Of an adapter, or of the model itself; from any thread."""
        known = adapter in self._lengths or len(self._lengths) < MOST_ADAPTERS
        name = adapter if known else ""
        return self._lengths.get(name) or self._lengths.setdefault(name, OutputLengths(self._prior))


def exact_length(output_tokens: int) -> LengthForecast:
    """The forecast of an answer whose length is known."""
    length = float(output_tokens)
    return LengthForecast(length, length, length)
