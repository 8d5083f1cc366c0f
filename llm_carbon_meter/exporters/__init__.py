"""Formatting of finished records for Prometheus, OpenTelemetry and HTTP; no energy arithmetic."""
