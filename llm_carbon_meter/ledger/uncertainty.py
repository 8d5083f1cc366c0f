"""How far a request's measured joules may be from what it truly caused."""

from math import hypot
from typing import Final

MODEL_ERROR: Final = 0.065
"""Of the division of steps that stays where whole windows fit: on the fairness simulator."""
STEP_ERROR: Final = 0.08
"""Of a single step, likewise: its own power, and what the sensor's period and lag blur."""
PROVISIONAL_ERROR: Final = 0.03
"""More, before the last tick: nine of ten final figures are this near."""


def uncertainty(window_error: float, num_steps: int, *, provisional: bool) -> float:
    """Half of an interval, relative, in which nine of ten requests' true joules lie.

    Args:
        window_error: usual relative error with which the learner expects the joules of a window.
        num_steps: of the request; errors of single steps cancel out over many.
        provisional: whether its last tick is still to come.
    """
    step_error = STEP_ERROR / max(num_steps, 1) ** 0.5
    return hypot(MODEL_ERROR, window_error, step_error, PROVISIONAL_ERROR if provisional else 0.0)
