"""A real HTTP server on this machine that speaks the chat part of the OpenAI protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the server answers: the model's text and why it ended, or an error's status, or any body as it is."""

    text: str | None
    finish: str = "stop"
    status: int = 200
    body: bytes | None = None
    kind: str = "application/json"


class Endpoint(ThreadingHTTPServer):
    """Keeps what it was sent, and how many requests were under way at once."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.under_way = 0
        self.most = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.keys.add(self.headers["Authorization"])
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        reply = server.reply(body)
        content: dict[str, Any] = {"error": {"message": f"no good, {self.headers['Authorization']}"}}
        if reply.status == 200:
            message = {"role": "assistant", "content": reply.text}
            content = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": reply.finish, "message": message}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
        data = json.dumps(content).encode() if reply.body is None else reply.body
        self.send_response(reply.status)
        for name, value in (("Content-Type", reply.kind), ("Content-Length", len(data)), ("Retry-After", 0)):
            self.send_header(name, str(value))
        self.end_headers()
        with server.lock:
            server.under_way -= 1  # before the client has its answer, and may ask the next
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """The server, for the time of a block."""
    endpoint = Endpoint(reply)
    thread = threading.Thread(target=endpoint.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()
