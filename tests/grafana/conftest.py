"""Real Prometheus programs."""

import pytest

from tests.support.debian import provide

from .tools import ALERTMANAGER_NAMES, Tools


@pytest.fixture(scope="session")
def prometheus_tools() -> Tools:
    """The programs; skips where they are missing and cannot be installed."""
    provide({"prometheus": ("promtool",), "prometheus-alertmanager": ALERTMANAGER_NAMES})
    return Tools()
