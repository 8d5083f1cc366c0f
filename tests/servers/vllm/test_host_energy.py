"""Real servers that tell the host's energy too, or the CPU's as their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from llm_carbon_meter.records import REQUEST_ACCOUNTS
from tests.support.powercap import Advancing, Powercap
from tests.support.redfish_server import LOGIN, PASSWORD, answering, chassis
from tests.support.servers.completions import complete_together
from tests.support.servers.metered import Metered, StartServer, assert_balanced
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine

HOST = "llm_carbon_meter_host_energy_joules_total"
SERVING = [account.label for account in REQUEST_ACCOUNTS]


class OnHost(NamedTuple):
    """A server on a host whose counters have run while it served, and rest now."""

    metered: Metered
    tree: Powercap
    records: list[dict[str, Any]]

    def drawn(self, *zones: str) -> float:
        """Joules of some zones since the server's start."""
        return sum(self.tree.drawn_microjoules[zone] for zone in zones) / 1e6


PACKAGES, MEMORIES = ("intel-rapl:0", "intel-rapl:1"), ("intel-rapl:0:0", "intel-rapl:1:0")


@contextmanager
def served(start_server: StartServer, root: Path, setting: str) -> Iterator[OnHost]:
    """Requests, while the tree's counters run and come round; it rests at the server's start."""
    tree = Powercap(root, range_microjoules=3_000_000_000)
    with start_server(environment={setting: f"rapl:{tree.folder}"}) as metered:
        watts = {"intel_rapl_0": 700.0, "intel_rapl_1": 300.0, "intel_rapl_0_0": 30.0}
        with Advancing(tree, intel_rapl_1_0=20.0, intel_rapl_2=2000.0, **watts):
            records = [
                record for _ in range(7) for record in complete_together(metered, 4, [5, 6, 7], 60)
            ]
        yield OnHost(metered, tree, records)


class TestHost:
    """A GPU's server on a host with RAPL."""

    @pytest.fixture(scope="class")
    @staticmethod
    def host(
        start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[OnHost]:
        root = tmp_path_factory.mktemp("sys")
        with served(start_server, root, "LLM_CARBON_METER_HOST_ENERGY") as on_host:
            yield on_host

    def test_requests_and_the_rest_are_what_the_counters_moved(self, host: OnHost) -> None:
        """To nine digits, package and memory each, though the counters came round."""
        assert host.drawn("intel-rapl:0") > 3000.0
        for domain, zones in (("package", PACKAGES), ("dram", MEMORIES)):
            drawn = host.drawn(*zones)

            def agree(domain: str = domain, drawn: float = drawn) -> bool:
                return host.metered.metric(HOST, domain=domain) == pytest.approx(drawn, rel=1e-9)

            eventually(agree, f"{drawn} J of {domain}")
        idle = host.metered.metric(HOST, account="idle")
        rest = idle + host.metered.metric(HOST, account="overhead")
        requests = sum(record["host_joules"] for record in host.records)
        assert requests + rest == pytest.approx(host.drawn(*PACKAGES, *MEMORIES), rel=1e-9)
        assert host.metered.metric(HOST, account="unattributed") == 0
        assert requests > 0
        assert idle > 0

    def test_it_is_apart_from_the_gpu_s_joules(self, host: OnHost) -> None:
        """The GPU's accounts balance without it, and the record says what it covers."""
        assert_balanced(host.metered)
        record = host.records[0]
        assert record["boundary"] == "gpu"
        assert record["host_source"] == "measured"
        assert record["host_wh"] == pytest.approx(record["host_joules"] / 3600)
        assert record["covers"].endswith("; host: CPU package and dram (RAPL)")
        assert record["energy_joules"] == pytest.approx(
            sum(record[f"{name}_joules"] for name in (*SERVING, "idle"))
        )
        assert not host.metered.metric("llm_carbon_meter_errors_total")
        assert "host_joules" in host.metered.logged()[0]


class TestCpu:
    """An engine on the CPU, whose joules are the packages'."""

    @pytest.fixture(scope="class")
    @staticmethod
    def host(
        start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[OnHost]:
        root = tmp_path_factory.mktemp("sys")
        with served(start_server, root, "LLM_CARBON_METER_POWER") as on_host:
            yield on_host

    def test_the_cpu_s_joules_are_the_requests_own(self, host: OnHost) -> None:
        """Measured, of quality package; packages and memory, and the accounts add up to them."""
        drawn = host.drawn(*PACKAGES, *MEMORIES)
        eventually(
            lambda: (
                sum(host.metered.accounts(source="measured").values())
                == pytest.approx(drawn, rel=1e-9)
            ),
            f"{drawn} J in all accounts",
        )
        for record in host.records:
            assert (record["source"], record["quality"]) == ("measured", "package")
            assert record["boundary"] == "cpu"
            assert record["covers"].startswith("energy of the host's CPU packages and memory")
            assert "embodied" not in record["covers"]
            assert record["embodied_grams"] is None
            assert "host_joules" not in record
        assert sum(record["energy_joules"] for record in host.records) == pytest.approx(
            sum(host.metered.accounts()[name] for name in SERVING), rel=1e-9
        )


def test_a_constant_is_modelled(start_server: StartServer) -> None:
    """Watts of the settings over the server's time; nothing of it is called measured."""
    with start_server(environment={"LLM_CARBON_METER_HOST_ENERGY": "200"}) as metered:
        (record,) = complete_together(metered, 1, [5, 6, 7], 60)
        assert record["host_source"] == "modelled"
        assert record["covers"].endswith("; host: 200 W all the time, as set")
        seconds = record["gpu_seconds"]
        assert record["host_joules"] == pytest.approx(200 * seconds, rel=1e-6)
        assert metered.metric(HOST, source="modelled", domain="server") > record["host_joules"]
        assert metered.metric(HOST, source="measured") == 0


def test_a_controller_s_power_less_the_gpu_s(start_server: StartServer) -> None:
    """A kilowatt over HTTP, of which NVML has 300 W; its password is in no log."""
    with answering(chassis("1")) as controller:
        controller.draw(1000)
        setting = {"LLM_CARBON_METER_HOST_ENERGY": f"redfish:{controller.url}"}
        with start_server(environment=setting) as metered:
            records = complete_together(metered, 2, [5, 6, 7], 60)
            eventually(lambda: metered.metric(HOST) > 5_000, "some seconds of the host")
            before_joules, before_s = metered.metric(HOST), monotonic()
            eventually(lambda: metered.metric(HOST) > before_joules + 5_000, "some more")
            watts = (metered.metric(HOST) - before_joules) / (monotonic() - before_s)
            assert watts == pytest.approx(700, rel=0.3)  # totals come in steps of a second
            for record in records:
                assert record["host_source"] == "measured"
                assert record["covers"].endswith("; host: the server (Redfish), less its 1 GPUs")
                assert record["host_joules"] == pytest.approx(700 * record["gpu_seconds"], rel=0.1)
            log = metered.server.log.read_text(errors="replace")
            assert PASSWORD not in log
            assert LOGIN not in log
