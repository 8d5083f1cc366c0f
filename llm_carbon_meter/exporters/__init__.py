"""Formatting of finished records: Prometheus, OpenTelemetry, HTTP headers. No arithmetic of energy here."""
