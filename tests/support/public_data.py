"""The public data sets, where this machine has them."""

from pathlib import Path

import pytest

from llm_carbon_meter.config import DATA_VARIABLE, data_folder
from llm_carbon_meter.records import ConfigError


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of the public data sets; the test is skipped without it."""
    try:
        return data_folder()
    except ConfigError as error:
        pytest.skip(f"{error} (the tests of the real files read {DATA_VARIABLE})")
