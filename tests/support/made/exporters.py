"""An exporter with all metrics that the settings can switch on."""

from prometheus_client import CollectorRegistry

from llm_carbon_meter.carbon.money import Prices
from llm_carbon_meter.exporters.prometheus import PrometheusExporter


def whole_exporter() -> PrometheusExporter:
    """With prices and tenants."""
    return PrometheusExporter(
        "model",
        owns_totals=True,
        registry=CollectorRegistry(),
        prices=Prices("EUR", (0.3,), 2.0, 1.0),
        tenants=(),
    )
