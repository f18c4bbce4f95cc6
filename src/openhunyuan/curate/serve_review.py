"""The page on which people judge clips, served on this machine's loopback address only.

    GET  /                      the page (review.html)
    GET  /api/state?annotator=  what is asked next, and how far the review is
    GET  /api/clip?annotator=&clip=   one clip with this person's answer, to go back to it
    POST /api/answer            {annotator, clip, views | skipped, seconds} → the new state
    GET  /api/agreement         who agrees with whom
    GET  /media/<clip>          the clip's file, by parts where that is asked for

Files are found by the ids of the clips under review, never by a path. Only pages of this address may talk to it: the
Host header must name the loopback address, so that no other site can, through a name that it points here.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import ExitStack
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.review import Review, name_of, serving, views_of

HOST = "127.0.0.1"
LARGEST = 64 * 1024
"""Bytes of the largest request body."""

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
_CHUNK = 1 << 18


class Refused(Exception):
    """A request that is not served: a status and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ReviewServer:
    """A review behind a port of the loopback address; 0 takes a free one. Raises UserError when the port is taken, or
    when the review of this folder is being served already."""

    def __init__(self, review: Review, port: int = 0) -> None:
        self._held = ExitStack()
        self._held.enter_context(serving(review.data))
        handler = type("Handler", (_Handler,), {"review": review})
        try:
            self._server = ThreadingHTTPServer((HOST, port), handler)
        except (OSError, OverflowError) as error:
            self._held.close()
            raise UserError(f"The port {port} cannot be used ({error}); choose another with --port.") from None
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_address[1]}/"

    def run(self) -> None:
        """Serve until `close`, or until interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self.run, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._held.close()


class _Handler(BaseHTTPRequestHandler):
    review: Review
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer({"/": self._page, "/api/state": self._state, "/api/clip": self._clip,
                      "/api/agreement": self._agreement})  # fmt: skip

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer({"/api/answer": self._add})

    def _answer(self, routes: dict[str, Any]) -> None:
        try:
            self.content = self._read() if self.command == "POST" else b""
            self._check_sender()
            parts = urlsplit(self.path)
            self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            if parts.path in routes:
                routes[parts.path]()
            elif parts.path.startswith("/media/") and self.command != "POST":
                self._media(parts.path.removeprefix("/media/"))
            else:
                raise Refused(HTTPStatus.NOT_FOUND, f"There is nothing to {self.command} at this address.")
        except Refused as refused:
            self._json({"error": str(refused)}, refused.status)
        except (UserError, ValueError) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page went on to another clip

    def _check_sender(self) -> None:
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if host not in _HOSTS:
            raise Refused(HTTPStatus.FORBIDDEN, f"This page is served to {' and '.join(_HOSTS[:2])} only.")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN, "Only this page itself may send requests here.")

    # ------------------------------------------------------------------------------------------------------- routes

    def _page(self) -> None:
        page = files("openhunyuan.curate").joinpath("review.html").read_bytes()
        self._send(page, "text/html; charset=utf-8")

    def _state(self) -> None:
        self._json(self._state_of(self._annotator(self.query)))

    def _clip(self) -> None:
        annotator, clip = self._annotator(self.query), self._find(self.query.get("clip"))
        answer = self.review.answers.newest().get((annotator, str(clip.sha256)))
        self._json({**_item(clip), "answer": answer and answer.model_dump(include={"views", "skipped"})})

    def _agreement(self) -> None:
        self._json({"views": [asdict(one) for one in self.review.agreement()], **self.review.counts()})

    def _add(self) -> None:
        body = self._body()
        known = ("annotator", "clip", "views", "skipped", "seconds")
        if extra := sorted(set(body) - set(known)):
            raise UserError(f"An answer has no field {extra[0]}; its fields are {', '.join(known)}.")
        annotator, clip = self._annotator(body), self._find(body.get("clip"))
        views, skipped, seconds = body.get("views") or {}, body.get("skipped"), body.get("seconds", 0.0)
        if not isinstance(views, dict) or any(not isinstance(value, bool) for value in views.values()):
            raise UserError("The field views is an object of true and false.")
        if not (skipped is None or isinstance(skipped, str)):
            raise UserError("The field skipped is a text.")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e6:
            raise UserError("The field seconds is a number of seconds, 0 or more.")
        self.review.answer(annotator, clip, views, skipped, float(seconds))
        self._json(self._state_of(annotator))

    def _media(self, name: str) -> None:
        clip = self._find(name)
        path = self.review.data / str(clip.path)
        try:
            size = path.stat().st_size
            file = path.open("rb")
        except OSError:
            raise Refused(HTTPStatus.NOT_FOUND, f"The file of clip {clip.id} is gone; run curate again.") from None
        with file:
            start, end = _range(self.headers.get("Range"), size)
            self.send_response(HTTPStatus.PARTIAL_CONTENT if self.headers.get("Range") else HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            if self.headers.get("Range"):
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self._common_headers()
            self.end_headers()
            if self.command == "HEAD":
                return
            file.seek(start)
            while start < end and (part := file.read(min(_CHUNK, end - start))):
                self.wfile.write(part)
                start += len(part)

    # -------------------------------------------------------------------------------------------------------- parts

    def _annotator(self, values: dict[str, Any]) -> str:
        name = values.get("annotator")
        if not isinstance(name, str):
            raise UserError("The field annotator is missing: who judges?")
        return name_of(name)

    def _find(self, name: Any) -> Clip:
        clip = self.review.clips.get(name) if isinstance(name, str) else None
        if clip is None:
            raise Refused(HTTPStatus.NOT_FOUND, "No clip of this id is under review.")
        return clip

    def _read(self) -> bytes:
        """The body of a request; read before anything is refused, so that the refusal reaches the sender."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 12:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "An answer says how long it is (Content-Length).")
        content = self.rfile.read(min(int(length), 16 * LARGEST))
        if int(length) > LARGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"An answer has at most {LARGEST} bytes.")
        return content

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "An answer is sent as application/json.")
        try:
            body = json.loads(self.content)
        except (ValueError, RecursionError):
            raise UserError("The answer is not JSON.") from None
        if not isinstance(body, dict):
            raise UserError("The answer is not a JSON object.")
        return body

    def _state_of(self, annotator: str) -> dict[str, Any]:
        review = self.review
        mine = [sha256 for name, sha256 in review.answers.newest() if name == annotator]
        places = {str(clip.sha256): clip.id for clip in review.clips.values()}
        done = [places[sha256] for sha256 in mine if sha256 in places]
        following = review.next(annotator)
        return {
            "annotator": annotator,
            "set": review.rule.reviewed,
            "people": review.rule.people,
            "done": done,
            "clips": len(review.clips),
            "next": following and _item(following),
            **review.counts(),
        }

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        if status >= 400:
            self.close_connection = True  # what was not read of the request must not be taken for the next one
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json; charset=utf-8", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self._common_headers()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _common_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        own = "'self' 'unsafe-inline'"
        policy = f"default-src {own}; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
        self.send_header("Content-Security-Policy", policy)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (a malformed request line, an unknown method), in the same form."""
        self.close_connection = True
        status = HTTPStatus(code)
        self.command = self.command or "GET"
        self._json({"error": f"{message or status.phrase}."}, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed: the terminal shows where the page is, and nothing else."""


def _item(clip: Clip) -> dict[str, Any]:
    return {
        "clip": clip.id,
        "kind": clip.kind,
        "url": f"/media/{clip.id}",
        "fps": clip.fps,
        "seconds": round(clip.num_frames / clip.fps, 2),
        "width": clip.width,
        "height": clip.height,
        "views": [view.model_dump() for view in views_of(clip.kind)],
    }


def _range(header: str | None, size: int) -> tuple[int, int]:
    """(first byte, one past the last) of a Range header; all of it where there is none."""
    if header is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip(), re.ASCII)
    if match and (match[1] or match[2]) and len(header) < 60:
        start = int(match[1]) if match[1] else max(0, size - int(match[2]))
        end = min(size, int(match[2]) + 1) if match[1] and match[2] else size
        if start < end:
            return start, end
    raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"The file has {size} bytes; ask for bytes=first-last.")
