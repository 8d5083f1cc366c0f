"""Fixtures for every folder of tests: the stub of NVML, real servers, the public data sets.

A GPU machine may have torch, numpy, nvidia-ml-py and pytest alone: there only
tests/gpu is collected.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

# An assertion that fails in a helper shows its values too.
pytest.register_assert_rewrite("tests.support")

# module -> packages that it needs
FIXTURES = {
    "tests.support.scripted_nvml": ("pynvml",),
    "tests.support.servers.metered": ("grpc", "openai"),
    "tests.support.public_data": (),
}
pytest_plugins = [module for module, needs in FIXTURES.items() if all(map(find_spec, needs))]

if not find_spec("hypothesis"):
    collect_ignore = [
        path.name
        for path in Path(__file__).parent.iterdir()
        if path.name not in ("__init__.py", "conftest.py", "gpu")
    ]
