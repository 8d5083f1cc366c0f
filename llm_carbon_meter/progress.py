"""Progress bars on standard error: moved once a second, and once in ten where nobody watches."""

import sys
from collections.abc import Iterable
from typing import Any, Final

from tqdm import tqdm

SECONDS: Final = 1.0
SECONDS_IN_A_LOG: Final = 10.0


def progress(steps: Iterable[Any] | None = None, **named: Any) -> Any:
    """A bar over some steps, or one that is moved by hand.

    Args:
        steps: passed on one by one.
        named: of `tqdm.tqdm`.
    """
    seconds = SECONDS if sys.stderr.isatty() else SECONDS_IN_A_LOG
    return tqdm(steps, mininterval=seconds, maxinterval=seconds, **named)
