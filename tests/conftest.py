"""Fixtures of real servers, for every folder of tests.

A machine that is lent for its GPU may have torch, numpy, nvidia-ml-py and pytest alone: there only
tests/gpu is collected.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

# An assertion that fails in a helper shows its values too.
pytest.register_assert_rewrite("tests.support")

if all(map(find_spec, ("grpc", "hypothesis", "openai"))):
    from tests.support.metered import start_server, stub_library, tiny_model

    __all__ = ["start_server", "stub_library", "tiny_model"]
else:
    collect_ignore = [
        path.name
        for path in Path(__file__).parent.iterdir()
        if path.name not in ("__init__.py", "conftest.py", "gpu")
    ]
