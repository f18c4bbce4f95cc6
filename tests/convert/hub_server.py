"""A small server that speaks the hub's protocol, over real HTTP on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has and what it was asked.

    Attributes:
        files: repository -> file -> content.
        broken: a file that is cut off after half of what was asked for.
        spoiled: a file that arrives with other content than it is listed with.
        gated: repositories that need an account.
        gets: (repository, file, first byte) of every download.
    """

    files: dict[str, dict[str, bytes]]
    broken: str | None = None
    spoiled: str | None = None
    gated: set[str] = field(default_factory=set)
    gets: list[tuple[str, str, int]] = field(default_factory=list)


def _lfs(content: bytes) -> dict[str, object]:
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+)|/tree/[^/]+)?", path):
            self._api(match, body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[3], body)
        else:
            self._send(404, b"", {}, body)

    def _api(self, match: re.Match[str], body: bool) -> None:
        repository, hub = match[1], self.server.hub
        if repository in hub.gated:
            self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"}, body)
        elif repository not in hub.files:
            self._json(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"}, body)
        elif match[3] not in (None, "main", COMMIT):
            self._json(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}, body)
        elif (match[2] or "").startswith("/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                    # As on the hub, large files are known by their SHA-256.
                    **({"lfs": _lfs(content)} if len(content) > 1000 else {}),
                }
                for name, content in hub.files[repository].items()
            ]
            self._json(200, entries, {}, body)
        else:
            siblings = [{"rfilename": name} for name in hub.files[repository]]
            self._json(200, {"id": repository, "sha": COMMIT, "siblings": siblings}, {}, body)

    def _file(self, repository: str, name: str, body: bool) -> None:
        hub = self.server.hub
        content = hub.files.get(repository, {}).get(name)
        if content is None:
            self._json(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}, body)
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if body:
            hub.gets.append((repository, name, start))
        part = bytes(len(content)) if hub.spoiled == name else content[start:]
        cut = len(part) // 2 if body and hub.broken == name else None
        self._send(status, part, headers, body, cut)

    def _json(self, status: int, value: object, headers: dict[str, str], body: bool) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
