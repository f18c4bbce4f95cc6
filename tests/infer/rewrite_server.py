"""A real HTTP server on this machine that speaks the OpenAI chat API, and misbehaves as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789"

DRAFT = {
    "short": "A fox runs.",
    "dense": "A red fox runs through the snow",
    "background": "",
    "shot_type": "",
    "camera": "pan left",
    "lighting": "Soft light.",
    "style": "",
    "atmosphere": "",
}
DRAFT_TEXT = "A red fox runs through the snow. The camera pans left. Soft light."
FINAL = {**DRAFT, "dense": "Two red foxes run through the snow.", "background": "a pine forest"}
FINAL_TEXT = "Two red foxes run through the snow. A pine forest. The camera pans left. Soft light."

Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """What the server does and what it saw. ``replies`` are used one after another, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.models = ["test-model"]
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.url = ""

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def says(content: Any, **extra: Any) -> Reply:
    """A completion; a dict is sent as its JSON text."""
    text = json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else content
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    message = {**choice["message"], **{k: v for k, v in extra.items() if k == "refusal"}}
    choice = {**choice, "message": message, **{k: v for k, v in extra.items() if k == "finish_reason"}}
    body = json.dumps({"id": "1", "object": "chat.completion", "model": "test-model", "choices": [choice]}).encode()
    return lambda handler: send(handler, 200, body)


def status(code: int, message: str = "it broke", headers: dict[str, str] | None = None) -> Reply:
    return lambda handler: send(handler, code, json.dumps({"error": {"message": message}}).encode(), headers)


def raw(body: bytes, code: int = 200) -> Reply:
    return lambda handler: send(handler, code, body)


def hang(seconds: float = 3.0) -> Reply:
    """Takes the request and says nothing."""
    return lambda handler: time.sleep(seconds)


def trickle(seconds: float = 3.0) -> Reply:
    """Sends a byte now and then, so that no single read ever waits long."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    return reply


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    """Promises more bytes than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    """A server that gives ``replies`` to chat completions, on a free port of this machine."""
    server = Server(*replies)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.paths.append(self.path)
            send(self, 200, json.dumps({"object": "list", "data": [{"id": name} for name in server.models]}).encode())

        def do_POST(self) -> None:
            server.paths.append(self.path)
            server.headers.append(dict(self.headers.items()))
            server.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            # A client that leaves is what some of these tests are about.
            with suppress(BrokenPipeError, ConnectionResetError):
                server.next()(self)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        # Not server_close(): it would wait for the threads that hang on purpose.
        http.socket.close()
        thread.join()
