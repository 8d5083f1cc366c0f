"""Drift: which requests are judged, over what window, and when there is an alarm."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.predictor.drift import (
    CAPACITY,
    CLEARS_BELOW,
    SERIES,
    WATCHED,
    Alarm,
    DriftMonitor,
    DriftWindow,
    Verdict,
    is_drifting,
    joules_of,
)
from llm_carbon_meter.records import AccountJoules, Outcome, Quality, Source, Status
from tests.support.made.records import judged_estimate, judged_record


def test_the_four_series_are_not_mixed_up() -> None:
    """Raw and calibrated, given the length and not."""
    joules = joules_of(judged_record(10.0, 10.0))
    assert joules is not None
    measured, estimated = joules
    assert measured == 10.0
    assert dict(zip(SERIES, estimated, strict=True)) == {
        ("raw", "conditional"): 20.0,
        ("raw", "end_to_end"): 60.0,
        ("calibrated", "conditional"): 10.0,
        ("calibrated", "end_to_end"): 30.0,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"source": Source.MODELLED, "quality": Quality.MODELLED},
        {"quality": Quality.CONTENDED},
        {"quality": Quality.RESET},
        {"outcome": Outcome.ABORTED},
        {"status": Status.PROVISIONAL},
        {"conditional": None},
        {"estimate": None},
        {"conditional": judged_estimate(1.0, 1.0, facility=True)},
        {"accounts": AccountJoules()},
    ],
)
def test_only_trusted_measurements_are_judged(changes: Mapping[str, Any]) -> None:
    """Modelled, contended, unfinished or without an estimate: as if it had not been."""
    assert joules_of(judged_record(**changes)) is None


def test_spread_idle_joules_are_in_no_estimate() -> None:
    """They are taken off what was measured."""
    joules = joules_of(judged_record(accounts=AccountJoules(prefill=10.0, idle=2.0)))
    assert joules is not None
    assert joules[0] == 10.0


def filled(pairs: list[tuple[float, float]], min_requests: int = 1) -> DriftWindow:
    """A window of requests a second apart: measured joules and what all series estimated."""
    window = DriftWindow(100.0, min_requests)
    for second, (measured, estimated) in enumerate(pairs):
        window.observe(measured, [estimated] * len(SERIES), float(second))
    return window


def test_drift_is_of_the_sums_and_the_quantiles_are_of_requests() -> None:
    """One big request outweighs nine small ones in the sum alone."""
    report = filled([(1.0, 1.1)] * 9 + [(100.0, 50.0)]).report(10.0)
    assert report is not None
    assert report.num_requests == 10
    assert report.since_s == 0.0
    error = report.errors[WATCHED[0]]
    assert error.drift_ratio == pytest.approx((9.9 + 50) / 109 - 1)
    assert error.median_ratio == pytest.approx(0.1)
    assert 0.1 <= error.p90_absolute_ratio <= 0.5


def test_nothing_is_said_of_too_few() -> None:
    """Below the least number there is no report, and none of requests that are too old."""
    window = filled([(1.0, 2.0)] * 10, min_requests=10)
    assert window.report(9.0) is not None
    assert window.report(100.0) is None
    assert filled([(1.0, 2.0)] * 9, min_requests=10).report(9.0) is None


def test_old_requests_leave_the_window() -> None:
    """What was wrong an hour ago does not count any more."""
    window = filled([(1.0, 5.0)] * 50)
    for second in range(120, 170):
        window.observe(1.0, [1.0] * len(SERIES), float(second))
    report = window.report(170.0)
    assert report is not None
    assert report.num_requests == 50
    assert report.errors[WATCHED[0]].drift_ratio == pytest.approx(0.0)


def test_a_busy_window_keeps_the_latest() -> None:
    """Its size is bounded."""
    window = filled([])
    for number in range(CAPACITY + 500):
        window.observe(1.0, [1.0 if number < 500 else 2.0] * len(SERIES), 1.0)
    report = window.report(2.0)
    assert report is not None
    assert report.num_requests == CAPACITY
    assert report.errors[WATCHED[0]].drift_ratio == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.0, 1e4)), min_size=1, max_size=50),
    st.floats(0.01, 100.0),
)
def test_drift_has_no_unit(pairs: list[tuple[float, float]], factor: float) -> None:
    """The same in joules and in anything else, and never below -1."""
    reports = [
        filled([(factor_ * m, factor_ * e) for m, e in pairs]).report(50.0)
        for factor_ in (1.0, factor)
    ]
    assert all(reports)
    one, other = (report.errors[WATCHED[0]] for report in reports if report)
    assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
    assert one.drift_ratio >= -1.0


def test_an_alarm_does_not_flicker() -> None:
    """It begins above the threshold and ends well below it, on either side of 0."""
    for sign in (1.0, -1.0):
        assert is_drifting(sign * 0.26, 0.25, before=False)
        assert not is_drifting(sign * 0.24, 0.25, before=False)
        assert is_drifting(sign * 0.24, 0.25, before=True)
        assert not is_drifting(sign * 0.25 * CLEARS_BELOW, 0.25, before=True)


class TestMonitor:
    """Two engines, a window of 100 s, five requests."""

    def judged(self, monitor: DriftMonitor, now_s: float) -> Mapping[int, Verdict]:
        return {verdict.engine: verdict for verdict in monitor.judge(now_s)}

    def conditional(self, monitor: DriftMonitor, now_s: float) -> Alarm:
        """The alarm of engine 0 on estimates that are given the true length."""
        return self.judged(monitor, now_s)[0].alarms[0]

    def test_engines_are_judged_apart(self) -> None:
        """One drifts, the other does not; a third has too few requests to be named."""
        monitor = DriftMonitor(0.25, 100.0, 5)
        for second in range(5):
            monitor.observe(judged_record(10.0, 10.0), second)
            monitor.observe(judged_record(10.0, 5.0, engine=1), second)
        monitor.observe(judged_record(10.0, 5.0, engine=2), 5.0)
        verdicts = self.judged(monitor, 5.0)
        drifting = {engine: verdict.alarms[0].drifting for engine, verdict in verdicts.items()}
        assert drifting == {0: False, 1: True}
        report = verdicts[1].report
        assert report is not None
        assert report.errors[WATCHED[0]].drift_ratio == pytest.approx(-0.5)

    def test_a_change_is_told_once_and_how_long_it_lasted(self) -> None:
        """Begins, goes on, ends."""
        monitor = DriftMonitor(0.25, 100.0, 5)
        for second in range(5):
            monitor.observe(judged_record(10.0, 20.0), second)
        begins = self.conditional(monitor, 10.0)
        assert begins.drifting
        assert begins.changed_s is not None
        assert self.conditional(monitor, 20.0).changed_s is None
        for second in range(110, 120):
            monitor.observe(judged_record(10.0, 10.0), second)
        ends = self.conditional(monitor, 120.0)
        assert not ends.drifting
        assert ends.changed_s == pytest.approx(110.0)

    def test_silence_is_no_all_clear(self) -> None:
        """Without requests there is nothing to show; the alarm goes on where it was."""
        monitor = DriftMonitor(0.25, 100.0, 5)
        for second in range(5):
            monitor.observe(judged_record(10.0, 20.0), second)
        assert self.conditional(monitor, 5.0).drifting
        silent = self.judged(monitor, 1000.0)[0]
        assert silent == Verdict(0, None, [Alarm(series, True, None) for series in WATCHED])

    def test_what_clients_were_told_drifts_by_itself(self) -> None:
        """Right given the true length and company, and wrong as it was told, or the other way."""
        monitor = DriftMonitor(0.25, 100.0, 5)
        right = judged_estimate(20.0, 10.0)
        for second in range(5):
            monitor.observe(judged_record(10.0, estimate=judged_estimate(20.0, 13.0)), second)
        alarms = self.judged(monitor, 5.0)[0].alarms
        assert [(alarm.series, alarm.drifting) for alarm in alarms] == [
            (("calibrated", "conditional"), False),
            (("calibrated", "end_to_end"), True),
        ]
        assert [alarm.changed_s for alarm in alarms] == [None, 5.0]
        for second in range(110, 115):
            monitor.observe(judged_record(10.0, 13.0, estimate=right), second)
        alarms = self.judged(monitor, 115.0)[0].alarms
        assert [(alarm.drifting, alarm.changed_s) for alarm in alarms] == [
            (True, 115.0),
            (False, 110.0),
        ]

    def test_what_is_not_judged_opens_no_engine(self) -> None:
        """Modelled requests leave no trace."""
        monitor = DriftMonitor(0.25, 100.0, 1)
        monitor.observe(judged_record(source=Source.MODELLED), 0.0)
        assert not monitor.judge(math.inf)
