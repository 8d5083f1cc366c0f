"""Calls around an engine's methods: the engine never notices them."""

from types import ModuleType
from typing import Any

import pytest

from llm_carbon_meter.servers.shared.wrapping import wrap


class Engine:
    """Adds, or raises."""

    def add(self, first: int, second: int = 1) -> int:
        if first < 0:
            raise ValueError("an engine's own")
        return first + second


@pytest.fixture
def engine_class() -> type[Engine]:
    """A class of its own for every test."""
    return type("Wrapped", (Engine,), {})


def unexpected(_owner: Any, error: Exception) -> None:
    """Nothing of ours raises here."""
    raise error


def test_a_method_is_called_between_before_and_after(engine_class: type[Engine]) -> None:
    """Both get its object and its arguments, after gets its result as well."""
    calls: list[Any] = []
    wrap(
        engine_class,
        "add",
        before=lambda engine, *arguments, **named: calls.append((engine, arguments, named)),
        after=lambda engine, result, *arguments, **named: calls.append((engine, result)),
        on_error=unexpected,
    )
    engine = engine_class()
    assert engine.add(2, second=3) == 5
    assert calls == [(engine, (2,), {"second": 3}), (engine, 5)]


def test_a_function_of_a_module_is_wrapped_with_its_module() -> None:
    """The module stands where an object would."""
    module = ModuleType("engine")
    module.double = lambda number: 2 * number  # type: ignore[attr-defined]
    calls: list[Any] = []
    wrap(
        module,
        "double",
        after=lambda owner, result, number: calls.append((owner, result, number)),
        on_error=unexpected,
    )
    assert module.double(4) == 8
    assert calls == [(module, 8, 4)]


def test_what_the_engine_raises_is_told_and_goes_on(engine_class: type[Engine]) -> None:
    """`failed` hears of it, `after` does not."""
    calls: list[Exception] = []
    wrap(
        engine_class,
        "add",
        after=lambda *_: pytest.fail("there is no result"),
        failed=lambda engine, error, *_: calls.append(error),
        on_error=unexpected,
    )
    with pytest.raises(ValueError, match="an engine's own") as raised:
        engine_class().add(-1)
    assert calls == [raised.value]


@pytest.mark.parametrize("part", ["before", "after"])
def test_what_our_part_raises_is_reported_and_never_reaches_the_engine(
    engine_class: type[Engine], part: str
) -> None:
    """A signature that does not fit included."""
    reports: list[tuple[Any, Exception]] = []

    def without_arguments() -> None:
        pytest.fail("it cannot be called")

    def report(owner: Any, error: Exception) -> None:
        reports.append((owner, error))

    parts: dict[str, Any] = {part: without_arguments}
    wrap(engine_class, "add", on_error=report, **parts)
    engine = engine_class()
    assert engine.add(1) == 2
    ((owner, error),) = reports
    assert owner is engine
    assert isinstance(error, TypeError)
