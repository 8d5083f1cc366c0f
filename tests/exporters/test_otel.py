"""Child spans through the real OpenTelemetry SDK."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from llm_carbon_meter.exporters import otel
from llm_carbon_meter.exporters.otel import (
    SpanExporter,
    energy_attributes,
    estimate_attributes,
    tell_drift,
)
from llm_carbon_meter.records import CarbonIntensity, EnergyEstimate, Quality, Source
from tests.support.made.energies import energy_of

GRID = CarbonIntensity(475.0, "world", "static")
ESTIMATE = EnergyEstimate("flop", 18.0, 18.0, 20.0, 40.0, 5.0, True, 0.02)
PARENT = SpanContext(0xABCD, 0x1234, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
START_NS = time.time_ns() - 5_000_000_000


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this test; the process has no tracer provider before or after it."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return memory


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    """The attributes of a span, prefix cut off."""
    found = dict(span.attributes or {})
    assert all(name.startswith("llm_carbon_meter.") for name in found)
    return {name.removeprefix("llm_carbon_meter."): value for name, value in found.items()}


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_child_span_ends_at_settlement(
    collected: InMemorySpanExporter, parent_first: bool
) -> None:
    """Whichever comes first, span or figure, there is one child of the server's own span."""
    spans = SpanExporter(GRID)
    before_ns = time.time_ns()
    if parent_first:
        spans.parent("a", PARENT, START_NS)
        assert collected.get_finished_spans() == ()
        spans.final(energy_of("a"), ESTIMATE)
    else:
        spans.final(energy_of("a"), ESTIMATE)
        assert collected.get_finished_spans() == ()
        spans.parent("a", PARENT, START_NS)
    (span,) = collected.get_finished_spans()
    assert span.name == "llm_carbon_meter.request"
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.trace_id) == (0x1234, 0xABCD)
    assert span.context is not None
    assert span.context.trace_id == 0xABCD
    assert span.start_time == START_NS
    assert span.end_time is not None
    assert before_ns <= span.end_time <= time.time_ns()
    assert attributes(span) == {
        "energy.estimated_wh": 0.01,
        "emissions.estimated_gco2eq": 0.02,
        "energy.measured_wh": pytest.approx(0.003),
        "energy.prefill_wh": pytest.approx(0.001),
        "energy.decode_wh": pytest.approx(0.002),
        "emissions.measured_gco2eq": 0.0015,
        "carbon_intensity_gco2eq_per_kwh": 475.0,
        "quality": "counter",
        "status": "final",
    }


def test_the_span_ends_when_the_last_joule_was_settled(collected: InMemorySpanExporter) -> None:
    """A parent that comes late does not move the end."""
    spans = SpanExporter(GRID)
    spans.final(energy_of("a"), None)
    settled_ns = time.time_ns()
    time.sleep(0.02)
    spans.parent("a", PARENT, START_NS)
    (span,) = collected.get_finished_spans()
    assert span.end_time is not None
    assert span.end_time <= settled_ns


def test_a_span_never_ends_before_it_starts(collected: InMemorySpanExporter) -> None:
    """Wall clocks may step back between processes."""
    spans, future_ns = SpanExporter(GRID), time.time_ns() + 10**12
    spans.final(energy_of("a"), None)
    spans.parent("a", PARENT, future_ns)
    (span,) = collected.get_finished_spans()
    assert span.end_time == span.start_time == future_ns


def test_requests_have_their_own_spans(collected: InMemorySpanExporter) -> None:
    """Two at once, in crossed order, each with its own parent and figure; once each."""
    spans = SpanExporter(GRID)
    other = SpanContext(0xABCD, 0x9999, is_remote=True, trace_flags=PARENT.trace_flags)
    spans.parent("a", PARENT, START_NS)
    spans.final(energy_of("b", joules={"decode": 3600.0}), None)
    spans.parent("b", other, START_NS)
    spans.final(energy_of("a"), None)
    spans.final(energy_of("a"), None)
    found = {
        span.parent.span_id: attributes(span)["energy.decode_wh"]
        for span in collected.get_finished_spans()
        if span.parent
    }
    assert found == {0x1234: pytest.approx(0.002), 0x9999: 1.0}
    assert len(collected.get_finished_spans()) == 2


def test_an_unsampled_parent_has_no_child(collected: InMemorySpanExporter) -> None:
    """The server's sampling decision holds for our span too."""
    spans = SpanExporter(GRID)
    spans.parent("a", SpanContext(0xABCD, 0x1234, is_remote=True), START_NS)
    spans.final(energy_of("a"), None)
    assert collected.get_finished_spans() == ()


def test_without_an_sdk_nothing_happens() -> None:
    """The API alone is a dependency: spans then go nowhere."""
    spans = SpanExporter(GRID)
    spans.parent("a", PARENT, START_NS)
    spans.final(energy_of("a"), ESTIMATE)


def test_modelled_figures_have_their_own_attributes() -> None:
    """No measured name beside a modelled figure."""
    modelled = replace(energy_of("a"), source=Source.MODELLED, quality=Quality.MODELLED)
    names = set(energy_attributes(modelled, GRID))
    assert "llm_carbon_meter.energy.modelled_wh" in names
    assert "llm_carbon_meter.emissions.modelled_gco2eq" in names
    assert not any("measured" in name for name in names)


def test_attributes_of_an_estimate() -> None:
    """For the server's own span, before anything has run."""
    assert estimate_attributes(ESTIMATE) == {
        "llm_carbon_meter.energy.estimated_wh": 0.01,
        "llm_carbon_meter.emissions.estimated_gco2eq": 0.02,
    }


def test_spans_that_never_meet_their_figure_do_not_pile_up(
    collected: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit the oldest parent is forgotten."""
    monkeypatch.setattr(otel, "MAX_WAITING", 2)
    spans = SpanExporter(GRID)
    for name in "abc":
        spans.parent(name, PARENT, START_NS)
    for name in "abc":
        spans.final(energy_of(name), None)
    assert len(collected.get_finished_spans()) == 2


def test_attributes_of_a_calibrated_estimate() -> None:
    """What clients are told, not what the model said."""
    told = estimate_attributes(replace(ESTIMATE, calibration=2.0))
    assert told["llm_carbon_meter.energy.estimated_wh"] == pytest.approx(72 / 3600)
    assert told["llm_carbon_meter.emissions.estimated_gco2eq"] == pytest.approx(0.04)


def test_drift_is_an_event_of_a_span_of_its_own(collected: InMemorySpanExporter) -> None:
    """With the figures that the webhook gets."""
    tell_drift("drift_began", {"drift_ratio": 0.5, "model_name": "llama"})
    (span,) = collected.get_finished_spans()
    (event,) = span.events
    assert (span.name, event.name) == ("llm_carbon_meter.drift", "drift_began")
    assert dict(event.attributes or {}) == {"drift_ratio": 0.5, "model_name": "llama"}
