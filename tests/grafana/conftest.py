"""Fixtures of real Prometheus programs."""

from .tools import prometheus_tools

__all__ = ["prometheus_tools"]
