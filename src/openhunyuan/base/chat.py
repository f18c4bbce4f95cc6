"""A language model behind an OpenAI-compatible HTTP endpoint (vLLM, llama.cpp, Ollama, LM Studio, hosted ones).

Two calls of that API are used: ``GET /models``, to find the model's name where none was given, and
``POST /chat/completions`` with nothing but ``model`` and ``messages``, because servers differ in what else they accept
(a caller that knows its server may add to it).
The key goes into the Authorization header and nowhere else; redirects are not followed, so it stays with the address
that it was given for.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger

MAX_ANSWER_BYTES = 4_000_000
MAX_WAIT = 30.0
"""Seconds between two tries, at most; a server that asks for more is given up."""

_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_OF_SETUP = (401, 402, 403, 404, 405, 407)
"""The key, the account, the address or the model's name: what every request would be told."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_log = get_logger("chat")

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_REFUSAL = re.compile(
    r"\W*(i(['’]m| am)( so| very)? sorry|sorry,|i apologi[sz]e|i (can|could|will|would|must)( ?not|n['’]t)\b"
    r"|i (can|won)['’]t\b|i(['’]m| am) (unable|not able)|as an ai\b|unable to"
    r"|(很)?抱歉|对不起|我(无法|不能)|申し訳|すみません|죄송)",
    re.IGNORECASE,
)


def without_thought(answer: str) -> str:
    """An answer without what its model thought aloud, and without blanks around it."""
    return _THOUGHT.sub("", answer).strip()


def is_refusal(answer: str) -> bool:
    """Whether an answer begins the way refusals do."""
    return _REFUSAL.match(answer) is not None


def json_object(answer: str) -> dict[str, Any] | None:
    """The first JSON object in a text, whatever stands around it (code fences, remarks)."""
    decoder = json.JSONDecoder(strict=False)
    for match in re.finditer(r"\{", answer):
        try:
            value, _ = decoder.raw_decode(answer, match.start())
        except (ValueError, RecursionError):
            continue
        return value
    return None


class ChatError(UserError):
    """The endpoint gave nothing usable: not reachable, too slow, a refusal, an answer that is none.

    ``refused``: the model declined; asking again would not help. ``of_request``: the request is what failed, and not
    the server: too long, not accepted, an answer without an end. Neither would another try help there.
    """

    of_request = False

    def __init__(self, sentence: str, refused: bool = False) -> None:
        super().__init__(sentence)
        self.refused = refused


class ChatEndpoint:
    """An address of the OpenAI chat API. Subclasses say what it serves as: ``who`` names it in messages.

    Args:
        url: base address, with or without ``/v1``; http or https.
        model: the model's name there. None takes the one that the server serves.
        key: sent as a bearer token. None sends none.
        timeout: seconds for one whole answer, above 0.
        retries: further tries after a failure that may pass: no connection, no answer in time, 408, 409, 425, 429,
            5xx, a body that is not JSON; 0 or more.
        backoff: seconds before the first further try; doubled each time. A ``Retry-After`` goes before it.

    Raises:
        UserError: an address that is not one, or that has a user name, key or query in it.
    """

    who: ClassVar[str] = "endpoint"
    model_option: ClassVar[str] = "--model"

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        backoff: float = 1.0,
    ) -> None:
        self.url = _base_url(url, self.who)
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._model = model
        self._key = (key or "").strip()
        if not all(" " < letter < "\x7f" for letter in self._key):
            raise UserError(f"The {self.who}'s key has characters that no key has; set it again, without blanks.")
        host = urlsplit(self.url).hostname
        if self._key and self.url.startswith("http:") and host not in _LOOPBACK:
            _log.warning("The %s's key goes to %s unencrypted; use https if the server has it.", self.who, host)
        # A proxy for the outer world has nothing to say about a server on this machine.
        proxies = urllib.request.ProxyHandler({} if host in _LOOPBACK else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)

    @property
    def name(self) -> str:
        """The model's name, or "unknown" as long as the server has not said it."""
        return self._model or "unknown"

    @property
    def model(self) -> str:
        """The model's name; asks the server where none was given. Raises ``ChatError`` if it does not say one."""
        if self._model is None:
            entries = self._call("/models").get("data")
            names = [str(entry["id"]) for entry in entries or [] if isinstance(entry, dict) and "id" in entry]
            if len(names) != 1:
                known = f"it has {', '.join(names[:8])}" if names else "it lists none"
                raise self._error(f"needs the name of a model ({known}); give {self.model_option}")
            self._model = names[0]
        return self._model

    def ask(self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any] | None = None) -> str:
        """The answer to a conversation. ``fields``: further ones of the call, for a server that is known to take them.
        Raises ``ChatError`` when there is none."""
        body = {"model": self.model, "messages": list(messages), "stream": False, **(fields or {})}
        reply = self._call("/chat/completions", body)
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._error(f"answered without a message{self._said(reply)}") from None
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        if refusal or choice.get("finish_reason") == "content_filter":
            why = f": '{self._clean(str(refusal))}'" if refusal else " (its content filter)"
            raise self._error(f"refused{why}", refused=True)
        if choice.get("finish_reason") == "length":
            raise self._of_request("cut its answer off at its length limit")
        return self._hide(str(content or ""))

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call with its retries."""
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, body)
            except _Passing as error:
                wait = self.backoff * 2**attempt if error.wait is None else error.wait
                if attempt == self.retries or wait > MAX_WAIT:
                    tries = f", {attempt + 1} times" if attempt else ""
                    raise self._error(f"{error}{tries}") from None
                time.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "openhunyuan"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        end = time.monotonic() + self.timeout
        late = f"did not answer within {self.timeout:g} s"
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                raw = _read(response, end)
        except urllib.error.HTTPError as error:
            raise self._status_error(error) from None
        except TimeoutError:
            raise _Passing(late) from None
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise _Passing(late) from None
            raise _Passing(f"cannot be reached ({_words(reason)})") from None
        except http.client.HTTPException:
            raise _Passing("broke off its answer") from None
        try:
            reply = json.loads(raw)
        except (ValueError, RecursionError):
            raise _Passing("answered with something that is not JSON") from None
        if not isinstance(reply, dict):
            raise _Passing("answered with JSON that is not an object")
        return reply

    def _status_error(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                reply = json.loads(error.read(MAX_ANSWER_BYTES))
            except (OSError, ValueError, RecursionError, http.client.HTTPException):
                reply = None
        said = self._said(reply)
        if error.code in _RETRIED:
            return _Passing(f"answered {error.code}{said}", _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            # What a server says here may repeat the key.
            need = "it does not accept the key" if self._key else "it wants a key"
            return self._error(f"answered {error.code}: {need}")
        if 300 <= error.code < 400:
            return self._error("redirects elsewhere; give its final address")
        if _code(reply) == "content_filter":
            return self._error(f"refused{said or ' (its content filter)'}", refused=True)
        if 400 <= error.code < 500 and error.code not in _OF_SETUP:
            return self._of_request(f"answered {error.code}{said}")
        return self._error(f"answered {error.code}{said}")

    def _of_request(self, text: str) -> ChatError:
        error = self._error(text)
        error.of_request = True
        return error

    def _error(self, text: str, refused: bool = False) -> ChatError:
        return self.error(f"The {self.who} {text}.", refused)

    def error(self, sentence: str, refused: bool) -> ChatError:
        """The exception for a sentence that begins with "The <who>"; it names the address."""
        return ChatError(sentence.replace(f"The {self.who}", f"The {self.who} at {self.url}", 1), refused)

    def _said(self, reply: Any) -> str:
        """What an error reply says, in quotes, or ""."""
        error = reply.get("error") if isinstance(reply, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        return f": '{self._clean(text)}'" if isinstance(text, str) and text else ""

    def _clean(self, text: str) -> str:
        text = " ".join(self._hide(text).split())
        return f"{text[:200]}..." if len(text) > 200 else text

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _code(reply: Any) -> Any:
    """The code of an error reply, None where it has none."""
    error = reply.get("error") if isinstance(reply, dict) else None
    return error.get("code") if isinstance(error, dict) else None


class _Passing(Exception):
    """A failure that may pass: worth another try, after ``wait`` seconds where the server says so."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key along to another host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def _base_url(url: str, who: str) -> str:
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() for letter in url.strip()):
        raise UserError(f"'{url}' is not an address; the {who}'s looks like http://localhost:8000/v1.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"The {who}'s address must not hold a user, a password or a query; give the key in an environment variable."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _read(response: Any, end: float) -> bytes:
    """The whole body. The socket's timeout is for one read; a body that trickles in is stopped by ``end``."""
    chunks, size = [], 0
    while chunk := response.read1(65536):
        chunks.append(chunk)
        size += len(chunk)
        if time.monotonic() > end:
            raise TimeoutError
        if size > MAX_ANSWER_BYTES:
            raise _Passing(f"answered with more than {MAX_ANSWER_BYTES} bytes")
    if size < int(response.headers.get("Content-Length") or 0):
        raise http.client.IncompleteRead(b"")
    return b"".join(chunks)


def _seconds(text: str | None) -> float | None:
    try:
        return max(float(text), 0.0) if text is not None else None
    except ValueError:
        return None  # A date: the backoff is as good.


def _words(reason: Any) -> str:
    """An operating system's reason without its number."""
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__).rstrip(".")
