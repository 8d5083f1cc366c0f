"""A server's controller on localhost that answers as Redfish's schemas say."""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

USER, PASSWORD = "metering", "sec/ret@1"
LOGIN: Final = "metering:sec%2Fret%401"
"""As it stands in an address."""
CHASSIS: Final = "/redfish/v1/Chassis"


class Controller:
    """What a controller answers.

    Args:
        resources: JSON by path.
    """

    def __init__(self, resources: Mapping[str, Any]) -> None:
        self.resources = dict(resources)
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{LOGIN}@127.0.0.1:{self.port}"

    def draw(self, watts: float | None, chassis: str = "1") -> None:
        """Set the power of a chassis."""
        self.resources[f"{CHASSIS}/{chassis}/Power"]["PowerControl"][0]["PowerConsumedWatts"] = (
            watts
        )


def chassis(*names: str) -> dict[str, Any]:
    """Resources of chassis with the schema Power, as most servers have it."""
    collection = {"Members": [{"@odata.id": f"{CHASSIS}/{name}"} for name in names]}
    resources: dict[str, Any] = {CHASSIS: collection}
    for name in names:
        power = f"{CHASSIS}/{name}/Power"
        resources[f"{CHASSIS}/{name}"] = {"Id": name, "Power": {"@odata.id": power}}
        control = {"@odata.id": f"{power}#/PowerControl/0", "PowerConsumedWatts": 590}
        resources[power] = {"@odata.type": "#Power.v1_7_1.Power", "PowerControl": [control]}
    return resources


def with_environment_metrics(watts: float) -> dict[str, Any]:
    """Resources of a chassis with the newer schema, and the older one without a figure."""
    resources = chassis("Chassis_0")
    place = f"{CHASSIS}/Chassis_0/EnvironmentMetrics"
    resources[f"{CHASSIS}/Chassis_0"]["EnvironmentMetrics"] = {"@odata.id": place}
    resources[place] = {
        "@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics",
        "PowerWatts": {"Reading": watts},
        "EnergykWh": {"Reading": 1234.5},
    }
    resources[f"{CHASSIS}/Chassis_0/Power"]["PowerControl"] = []
    return resources


@contextmanager
def answering(resources: Mapping[str, Any]) -> Iterator[Controller]:
    """A controller inside the block; it wants a login."""
    controller = Controller(resources)
    wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            controller.asked.append(self.path)
            body = controller.resources.get(self.path)
            status = 401 if self.headers["Authorization"] != wanted else 200 if body else 404
            text = body if isinstance(body, str) else json.dumps(body or {})
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    controller.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield controller
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
