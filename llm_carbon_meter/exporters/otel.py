"""Span attributes, and the child span that ends when the last tick of a request is settled."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from llm_carbon_meter.records import (
    NOBODYS,
    CarbonIntensity,
    EnergyEstimate,
    RequestEnergy,
    Source,
    Whose,
)
from llm_carbon_meter.units import watt_hours

PREFIX: Final = "llm_carbon_meter."
SPAN_NAME: Final = "llm_carbon_meter.request"
DRIFT_SPAN: Final = "llm_carbon_meter.drift"
MAX_WAITING: Final = 10_000


def estimate_attributes(estimate: EnergyEstimate) -> dict[str, float]:
    """What was estimated before the request ran, calibrated."""
    shown = estimate.calibrated
    return {
        PREFIX + "energy.estimated_wh": watt_hours(shown.joules),
        PREFIX + "emissions.estimated_gco2eq": shown.operational_grams,
    }


def energy_attributes(energy: RequestEnergy, intensity: CarbonIntensity) -> dict[str, str | float]:
    """What the request used; modelled figures carry their own names."""
    source = "measured" if energy.source is Source.MEASURED else "modelled"
    return {
        f"{PREFIX}energy.{source}_wh": watt_hours(energy.joules),
        PREFIX + "energy.prefill_wh": watt_hours(energy.accounts.prefill),
        PREFIX + "energy.decode_wh": watt_hours(energy.accounts.decode),
        f"{PREFIX}emissions.{source}_gco2eq": energy.operational_grams,
        PREFIX + "carbon_intensity_gco2eq_per_kwh": intensity.grams_per_kwh,
        PREFIX + "quality": energy.quality,
        PREFIX + "status": energy.status,
    }


def whose_attributes(whose: Whose) -> dict[str, str]:
    """Tenant and adapter, where there are such."""
    return {PREFIX + name: value for name, value in whose._asdict().items() if value}


class SpanExporter:
    """Emits one child span per engine request once both its parent span and its energy are known.

    Args:
        intensity: of the grid.
    """

    def __init__(self, intensity: CarbonIntensity) -> None:
        self.intensity = intensity
        self._parents: OrderedDict[str, tuple[SpanContext, int]] = OrderedDict()
        self._finals: OrderedDict[str, tuple[Mapping[str, str | float], int]] = OrderedDict()

    def attributes(
        self, energy: RequestEnergy | None, estimate: EnergyEstimate | None, whose: Whose = NOBODYS
    ) -> Mapping[str, str | float]:
        """What is known of a request, as span attributes."""
        return {
            **whose_attributes(whose),
            **(estimate_attributes(estimate) if estimate else {}),
            **(energy_attributes(energy, self.intensity) if energy else {}),
        }

    def parent(self, request_id: str, context: SpanContext, start_ns: int) -> None:
        """The server's own span of a request was made."""
        final = self._finals.pop(request_id, None)
        if final is not None:
            _emit(context, start_ns, *final)
        else:
            _keep(self._parents, request_id, (context, start_ns))

    def final(
        self, energy: RequestEnergy, estimate: EnergyEstimate | None, whose: Whose = NOBODYS
    ) -> None:
        """The last joule of a request is settled: now is the end of its span."""
        attributes = self.attributes(energy, estimate, whose)
        parent = self._parents.pop(energy.request_id, None)
        if parent is not None:
            _emit(*parent, attributes, time.time_ns())
        else:
            _keep(self._finals, energy.request_id, (attributes, time.time_ns()))


def _keep(waiting: OrderedDict[str, Any], request_id: str, value: Any) -> None:
    waiting[request_id] = value
    while len(waiting) > MAX_WAITING:
        waiting.popitem(last=False)


def _emit(
    parent: SpanContext, start_ns: int, attributes: Mapping[str, str | float], end_ns: int
) -> None:
    span = trace.get_tracer("llm_carbon_meter").start_span(
        SPAN_NAME,
        context=set_span_in_context(NonRecordingSpan(parent)),
        start_time=start_ns,
        attributes=attributes,
    )
    span.end(end_time=max(end_ns, start_ns))


def tell_drift(event: str, attributes: Mapping[str, str | float]) -> None:
    """A span of no length with one event: drift concerns no single request."""
    with trace.get_tracer("llm_carbon_meter").start_as_current_span(DRIFT_SPAN) as span:
        span.add_event(event, attributes)
