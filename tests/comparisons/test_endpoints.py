"""The table of endpoints is what the clients of a real server get."""

import pytest

from tests.support.documents import SERVERS
from tests.support.servers.metered import StartServer

from .endpoints import probe, table

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_every_endpoint_has_a_record_that_its_client_finds(start_server: StartServer) -> None:
    """With the tokens of its usage, and all records add up to what requests were charged."""
    assert table(probe(start_server)) in SERVERS.read_text("utf-8")
