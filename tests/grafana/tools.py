"""Real Prometheus and Alertmanager."""

import contextlib
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_carbon_meter.testing.servers import free_port
from tests.support.waiting import eventually

DASHBOARD_FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"
ALERTMANAGER_NAMES = ("prometheus-alertmanager", "alertmanager")


def dashboards() -> Mapping[str, dict[str, Any]]:
    """The committed dashboards that show metrics, by name."""
    return {
        path.stem: json.loads(path.read_text())
        for path in DASHBOARD_FOLDER.glob("*.json")
        if path.stem != "runbooks"
    }


class Tools:
    """What Debian's packages have."""

    def promtool(self, *arguments: str) -> str:
        """Run promtool; what it printed."""
        return _run("promtool", *arguments)

    def faults_of_metrics(self, exposition: str) -> list[str]:
        """What ``promtool check metrics`` finds, a line each; none is good."""
        command = ["promtool", "check", "metrics"]
        done = subprocess.run(
            command, input=exposition, capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).splitlines()

    def amtool(self, *arguments: str) -> str:
        """Run amtool."""
        return _run("amtool", *arguments)

    @contextlib.contextmanager
    def prometheus(self, config: Path) -> Iterator["Prometheus"]:
        """A server that ends with the block; its data lie beside the configuration."""
        port = free_port()
        options = {"config.file": config, "storage.tsdb.path": config.with_name("data")}
        options |= {"web.listen-address": f"127.0.0.1:{port}", "log.level": "warn"}
        with _running("prometheus", options, config.with_name("prometheus.log")):
            server = Prometheus(f"http://127.0.0.1:{port}")
            _wait(server.url + "/-/ready")
            yield server

    @contextlib.contextmanager
    def alertmanager(self, config: Path) -> Iterator[str]:
        """An Alertmanager that ends with the block; its host and port."""
        address = f"127.0.0.1:{free_port()}"
        options = {"config.file": config, "storage.path": config.with_name("alerts")}
        # Alone: it looks for no others.
        options |= {"web.listen-address": address, "cluster.listen-address": ""}
        name = next(filter(shutil.which, ALERTMANAGER_NAMES))
        with _running(name, options, config.with_name("alertmanager.log")):
            _wait(f"http://{address}/-/ready")
            yield address


@dataclass(frozen=True)
class Prometheus:
    """The HTTP interface of a running server."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """What one of its routes answers."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """Series of an expression over a span of wall-clock time."""
        span = {"start": start_s, "end": end_s, "step": step_s}
        result: list[dict[str, Any]] = self.ask("query_range", query=expr, **span)["result"]
        return result

    def alerts(self) -> Mapping[str, str]:
        """State by name, pending or firing."""
        return {
            alert["labels"]["alertname"]: alert["state"] for alert in self.ask("alerts")["alerts"]
        }


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@contextlib.contextmanager
def _running(name: str, options: Mapping[str, Any], log: Path) -> Iterator[None]:
    arguments = [f"--{option}={value}" for option, value in options.items()]
    with log.open("wb") as output:
        process = subprocess.Popen([name, *arguments], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    eventually(answers, f"an answer of {url}", 30)
