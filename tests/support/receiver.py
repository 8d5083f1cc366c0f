"""A local HTTP server that remembers the JSON that is posted to it."""

import http.server
import json
import queue
import threading
from typing import Any, Self


class Receiver:
    """Usable as ``with Receiver() as receiver: ... receiver.next()``."""

    def __init__(self) -> None:
        self.status = 204
        self.authorization: str | None = None
        """Header of the last post."""
        self.posts: queue.Queue[tuple[str, Any]] = queue.Queue()
        receiver = self

        class Posts(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.authorization = self.headers.get("Authorization")
                receiver.posts.put((self.path, json.loads(body)))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Posts)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def next(self, timeout_s: float = 5.0) -> tuple[str, Any]:
        """Path and body of the oldest post that was not asked for yet."""
        return self.posts.get(timeout=timeout_s)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
