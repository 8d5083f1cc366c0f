"""The lifecycle of the meter's threads."""

import threading
from collections.abc import Callable

import pytest

from llm_carbon_meter.service import Service


def counting(turns: list[float], enough: int, done: threading.Event) -> Callable[[], float]:
    """A turn that is taken again at once, until there were enough."""

    def turn() -> float:
        turns.append(0.0)
        if len(turns) < enough:
            return 0.0
        done.set()
        return 60.0

    return turn


def never(_error: Exception) -> float:
    """Nothing fails."""
    raise AssertionError


def test_turns_are_taken_until_the_service_is_stopped() -> None:
    """A pause of a minute does not hold `stop` up."""
    turns: list[float] = []
    done = threading.Event()
    service = Service("test", counting(turns, 3, done), never)
    service.start()
    assert done.wait(5)
    service.stop(timeout_s=5)
    assert service.ended
    assert len(turns) == 3


def test_setting_wake_ends_a_pause() -> None:
    """Whoever has news does not wait for the period."""
    turns: list[float] = []
    wake, again = threading.Event(), threading.Event()

    def turn() -> float:
        turns.append(0.0)
        if len(turns) == 2:
            again.set()
        return 60.0

    service = Service("test", turn, never, wake)
    service.start()
    wake.set()
    assert again.wait(5)
    service.stop(timeout_s=5)


def test_a_turn_that_raises_is_told_and_followed_by_the_next() -> None:
    """The thread outlives any error."""
    errors: list[Exception] = []
    twice = threading.Event()

    def turn() -> float:
        raise ValueError("broken")

    def failed(error: Exception) -> float:
        errors.append(error)
        if len(errors) == 2:
            twice.set()
        return 0.0

    service = Service("test", turn, failed)
    service.start()
    assert twice.wait(5)
    service.stop(timeout_s=5)
    assert str(errors[0]) == "broken"


def test_a_service_that_never_started_can_be_stopped() -> None:
    """As after an error at start-up."""
    service = Service("test", pytest.fail, never)
    service.stop(timeout_s=0)
    assert service.ended


def test_a_pause_inside_a_turn_ends_when_the_service_is_stopped() -> None:
    """The turn then knows that it shall return."""
    inside, stopped = threading.Event(), threading.Event()

    def turn() -> float:
        inside.set()
        if service.pause(60):
            stopped.set()
        return 0.0

    service = Service("test", turn, never)
    service.start()
    assert inside.wait(5)
    service.stop(timeout_s=5)
    assert stopped.is_set()
