"""The HTTP side of prompt rewrite, against a real server on this machine that also misbehaves."""

import json
import socket
import time
from types import SimpleNamespace

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.endpoint import Endpoint
from openhunyuan.infer.rewrite.instructions import Message
from openhunyuan.infer.rewrite.options import RewriterOptions, open_rewriter
from openhunyuan.infer.rewrite.record import RewriteError
from openhunyuan.infer.rewrite.rewriter import rewrite_request
from tests.infer.rewrite_server import (
    DRAFT,
    FINAL,
    FINAL_TEXT,
    KEY,
    Reply,
    breaks_off,
    hang,
    raw,
    says,
    serving,
    status,
    trickle,
)

HELLO: list[Message] = [{"role": "user", "content": "grüß dich"}]
VARIABLES = (
    "OPENHUNYUAN_REWRITER",
    "OPENHUNYUAN_REWRITER_MODEL",
    "OPENHUNYUAN_REWRITER_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def endpoint(url: str, **options: object) -> Endpoint:
    return Endpoint(url, **{"model": "m", "timeout": 5.0, "retries": 0, "backoff": 0.01, **options})  # type: ignore[arg-type]


def test_a_call_carries_model_messages_and_key() -> None:
    with serving(says("hello")) as server:
        assert endpoint(server.url, key=f"{KEY}\n").ask(HELLO) == "hello"
    assert server.calls == [{"model": "m", "messages": HELLO, "stream": False}]
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent() -> None:
    with serving(says("hello")) as server:
        endpoint(server.url).ask(HELLO)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_be_written_in_several_ways(tail: str) -> None:
    with serving(says("hello")) as server:
        assert endpoint(server.url.removesuffix("/v1") + tail).ask(HELLO) == "hello"
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    "url, message",
    [
        ("ftp://here/v1", "not an address"),
        ("http://", "not an address"),
        ("http://a:port/v1", "not an address"),
        ("http://a b/v1", "not an address"),
        ("https://me:secret@here/v1", "must not hold a user"),
        ("https://here/v1?key=secret", "must not hold a user"),
    ],
)
def test_addresses_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Endpoint(url)


def test_a_key_with_a_blank_is_refused_without_being_shown() -> None:
    with pytest.raises(UserError, match="characters that no key has") as caught:
        Endpoint("https://here/v1", key="sk-secret\nX-Evil: 1")
    assert "secret" not in str(caught.value)


def test_a_key_over_plain_http_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    Endpoint("http://127.0.0.1:1/v1", key=KEY)
    assert caplog.text == ""
    Endpoint("http://far.example/v1", key=KEY)
    assert "unencrypted" in caplog.text
    assert KEY not in caplog.text


def test_the_only_model_is_found_and_several_are_listed() -> None:
    with serving(says("hello")) as server:
        client = endpoint(server.url, model=None)
        assert client.name == "unknown"
        assert client.ask(HELLO) == "hello"
        assert client.name == "test-model"
        assert client.ask(HELLO) == "hello"
        assert server.paths.count("/v1/models") == 1
        server.models = ["one", "two"]
        with pytest.raises(RewriteError, match=r"it has one, two\); give --rewriter-model"):
            endpoint(server.url, model=None).ask(HELLO)
        server.models = []
        with pytest.raises(RewriteError, match="it lists none"):
            endpoint(server.url, model=None).ask(HELLO)


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    body = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    with serving(raw(body)) as server:
        assert endpoint(server.url).ask(HELLO) == "hello"


@pytest.mark.parametrize(
    "reply, message, tries",
    [
        (status(500), "answered 500: 'it broke', 3 times", 3),
        (status(503), "answered 503: 'it broke', 3 times", 3),
        (status(429, "slow down"), "answered 429: 'slow down', 3 times", 3),
        (status(429, headers={"Retry-After": "0"}), "answered 429", 3),
        (status(503, headers={"Retry-After": "3600"}), "answered 503", 1),
        (raw(b"<html>500</html>", 500), r"answered 500, 3 times", 3),
        (raw(b"<html>fine</html>"), "not JSON, 3 times", 3),
        (raw(b'{"choices": [{"mess'), "not JSON, 3 times", 3),
        (raw(b"\xff\xfe"), "not JSON, 3 times", 3),
        (raw(b"[]"), "not an object, 3 times", 3),
        (breaks_off, "broke off its answer, 3 times", 3),
        (raw(b"{}"), "answered without a message", 1),
        (raw(b'{"choices": []}'), "answered without a message", 1),
        (raw(b'{"error": {"message": "no such model"}}'), "without a message: 'no such model'", 1),
        (status(400, "context too long"), "answered 400: 'context too long'", 1),
        (status(404), "answered 404", 1),
        (status(401, f"bad key {KEY}"), "401: it does not accept the key", 1),
        (status(307, headers={"Location": "http://127.0.0.1:1/"}), "redirects elsewhere", 1),
        (says(None, refusal="I will not."), "refused: 'I will not.'", 1),
        (says("", finish_reason="content_filter"), "content filter", 1),
        (says("{", finish_reason="length"), "length limit", 1),
    ],
)
def test_what_a_server_can_do_wrong(reply: Reply, message: str, tries: int) -> None:
    with serving(reply) as server, pytest.raises(RewriteError, match=message) as caught:
        endpoint(server.url, retries=2, key=KEY).ask(HELLO)
    assert len(server.calls) == tries
    assert KEY not in str(caught.value) + caught.value.reason
    assert server.url in str(caught.value)
    assert server.url not in caught.value.reason


@pytest.mark.parametrize("bad", [status(500), raw(b"nonsense"), hang(2.0), breaks_off])
def test_a_failure_that_passes_is_tried_again(bad: Reply) -> None:
    with serving(bad, says("hello")) as server:
        assert endpoint(server.url, retries=1, timeout=0.5).ask(HELLO) == "hello"
    assert len(server.calls) == 2


@pytest.mark.parametrize("reply", [hang(4.0), trickle(4.0)])
def test_a_server_that_hangs_is_left_in_time(reply: Reply) -> None:
    start = time.monotonic()
    with serving(reply) as server, pytest.raises(RewriteError, match=r"did not answer within 0\.3 s, 2 times"):
        endpoint(server.url, timeout=0.3, retries=1).ask(HELLO)
    assert time.monotonic() - start < 3
    assert len(server.calls) == 2


def test_waits_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr("openhunyuan.base.chat.time", clock)
    with serving(status(500)) as server, pytest.raises(RewriteError):
        endpoint(server.url, retries=3, backoff=1.0).ask(HELLO)
    assert waits == [1.0, 2.0, 4.0]


def test_an_endpoint_that_is_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(RewriteError, match=r"cannot be reached \(Connection refused\), 2 times"):
            endpoint(url, retries=1).ask(HELLO)


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_record() -> None:
    leaky = {**FINAL, "dense": f"The key is {KEY}."}
    with serving(says(DRAFT), says(leaky)) as server:
        request = rewrite_request(Request(prompt="foxes", rewrite="normal"), endpoint(server.url, key=KEY))
    assert "The key is ***." in request.prompt
    with serving(status(400, f"bad {KEY}")) as server:
        request = rewrite_request(Request(prompt="foxes", rewrite="normal"), endpoint(server.url, key=KEY))
    assert request.rewritten is not None
    assert request.rewritten.failure == "The rewriter answered 400: 'bad ***'."
    assert KEY not in request.model_dump_json()
    assert server.url not in request.model_dump_json()


def test_the_whole_way() -> None:
    with serving(says(f"```json\n{json.dumps(DRAFT)}\n```"), says(FINAL)) as server:
        request = rewrite_request(Request(prompt="两只狐狸", rewrite="normal"), endpoint(server.url, model=None))
    assert request.prompt == FINAL_TEXT
    assert request.rewritten is not None
    assert request.rewritten.rewriter == "test-model"
    assert server.calls[0]["messages"][-1]["content"] == "Request:\n两只狐狸"


def test_options_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="No rewriter is named"):
        open_rewriter(RewriterOptions())
    with serving(says("hello")) as server, serving(says("other")) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert open_rewriter(RewriterOptions(rewriter_model="a")).ask(HELLO) == "hello"
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        # The key of one address is not sent to another.
        assert open_rewriter(RewriterOptions(rewriter=other.url)).ask(HELLO) == "other"
        assert "Authorization" not in other.headers[-1]
        monkeypatch.setenv("OPENHUNYUAN_REWRITER", other.url)
        monkeypatch.setenv("OPENHUNYUAN_REWRITER_MODEL", "named")
        monkeypatch.setenv("MY_KEY", "mine")
        assert open_rewriter(RewriterOptions(rewriter_key_env="MY_KEY")).ask(HELLO) == "other"
        assert other.headers[-1]["Authorization"] == "Bearer mine"
        assert other.calls[-1]["model"] == "named"


@pytest.mark.parametrize(
    "options", [{"rewriter_timeout": 0}, {"rewriter_timeout": float("nan")}, {"rewriter_retries": -1}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        RewriterOptions(**options)
