"""``openhunyuan rewrite`` and ``generate --rewrite``, against a real server on this machine."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.cli.main import main
from tests.infer.rewrite_server import DRAFT, DRAFT_TEXT, FINAL, FINAL_TEXT, KEY, hang, raw, says, serving, status

REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("REWRITER", "REWRITER_MODEL"):
        monkeypatch.delenv(f"OPENHUNYUAN_{name}", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENHUNYUAN_REWRITER_KEY", KEY)
    return tmp_path


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_rewrite_prints_the_prompt_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(says(DRAFT), says(FINAL)) as server:
        assert run("rewrite", "zwei Füchse", "--mode", "master", "--rewriter", server.url) == 0
    assert capsys.readouterr().out == f"{FINAL_TEXT}\n"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "Mode: master" in server.calls[0]["messages"][0]["content"]


def test_rewrite_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(says(DRAFT), says(FINAL)) as server:
        assert run("rewrite", "zwei Füchse", "--json", "--rewriter", server.url) == 0
    assert json.loads(capsys.readouterr().out) == {
        "mode": "normal",
        "original": "zwei Füchse",
        "text": FINAL_TEXT,
        "draft": DRAFT_TEXT,
        "rewriter": "test-model",
        "failure": None,
        "note": None,
    }


@pytest.mark.parametrize(
    "args, message",
    [
        (["a fox"], "No rewriter is named"),
        ([], "PROMPT is missing"),
        ([" ", "--rewriter", "http://127.0.0.1:1"], "prompt is empty"),
        (["a fox", "--mode", "best"], "mode is 'best'"),
        (["a fox", "--rewriter", "nothing-here"], "rewriter folder nothing-here does not exist"),
        (["a fox", "--rewriter", "ftp://x"], "not an address"),
        (["a fox", "--rewriter-timeout", "0"], "rewriter_timeout is 0"),
        (["word " * 5000, "--rewriter", "http://127.0.0.1:1"], "5000 words"),
    ],
)
def test_rewrite_refuses_bad_input(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert run("rewrite", *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_rewrite_with_an_endpoint_that_is_down(dead_url: str) -> None:
    """In a process of its own: what a person sees is one sentence, and nothing on stdout."""
    code = "import sys; from openhunyuan.cli.main import main; sys.exit(main())"
    args = ["rewrite", "a fox", "--rewriter", dead_url, "--rewriter-model", "m", "--rewriter-retries", "0"]
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment())
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: The rewriter at {dead_url} cannot be reached (Connection refused).\n"


def environment() -> dict[str, str]:
    import os

    import openhunyuan

    assert openhunyuan.__file__ is not None
    return {**os.environ, "PYTHONPATH": str(Path(openhunyuan.__file__).parents[1])}


@pytest.mark.parametrize(
    "reply, message",
    [
        (raw(b"not json"), "not JSON"),
        (says(REFUSAL), "refused"),
        (says("A nice fox."), "twice not in the form"),
        (status(500), "answered 500"),
        (hang(2.0), "did not answer within 0.3 s"),
    ],
)
def test_rewrite_ends_with_two_when_there_is_no_rewrite(
    capsys: pytest.CaptureFixture[str], reply: object, message: str
) -> None:
    options = ("--rewriter-timeout", "0.3", "--rewriter-retries", "0")
    with serving(reply) as server:  # type: ignore[arg-type]
        assert run("rewrite", "a fox", "--rewriter", server.url, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def generate(model: Path, *options: object) -> int:
    return run("generate", "--prompt", "zwei Füchse", "--model", model, "--seed", 1, "--output-path", "a.mp4", *options)


def test_generate_stores_both_prompts_and_replay_does_not_rewrite(place: Path, micro_model_folder: Path) -> None:
    with serving(says(DRAFT), says(FINAL)) as server:
        assert generate(micro_model_folder, "--rewrite", "normal", "--rewriter", server.url) == 0
    assert len(server.calls) == 2
    stored = read_metadata(place / "a.mp4")
    assert stored["prompt"] == FINAL_TEXT
    assert stored["rewrite"] == "normal"
    assert stored["rewritten"]["original"] == "zwei Füchse"
    assert stored["rewritten"]["draft"] == DRAFT_TEXT
    everything = (place / "a.mp4").read_bytes() + (place / "a.json").read_bytes()
    assert KEY.encode() not in everything
    assert server.url.encode() not in everything

    # The server is gone by now: replay needs none, and so does a request that was rewritten.
    assert run("replay", "a.mp4", "--output-path", "b.mp4") == 0
    assert (read_video(place / "a.mp4")[0] == read_video(place / "b.mp4")[0]).all()
    assert read_metadata(place / "b.mp4")["rewritten"] == stored["rewritten"]

    # The rewritten prompt is the one that was used.
    assert (
        run("generate", "--prompt", FINAL_TEXT, "--model", micro_model_folder, "--seed", 1, "--output-path", "c.mp4")
        == 0
    )
    assert (read_video(place / "a.mp4")[0] == read_video(place / "c.mp4")[0]).all()


def test_generate_falls_back_and_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path, dead_url: str
) -> None:
    options = ("--rewrite", "master", "--rewriter", dead_url, "--rewriter-model", "m", "--rewriter-retries", "0")
    assert generate(micro_model_folder, *options) == 0
    assert "The prompt is used as it is, because rewriting failed." in capsys.readouterr().err
    stored = read_metadata(place / "a.mp4")
    assert stored["prompt"] == "zwei Füchse"
    assert stored["rewritten"] == {
        "mode": "master",
        "original": "zwei Füchse",
        "text": "zwei Füchse",
        "draft": None,
        "rewriter": "m",
        "failure": "The rewriter cannot be reached (Connection refused).",
        "note": None,
    }


def test_generate_strict_makes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path, dead_url: str
) -> None:
    options = ("--rewrite", "normal", "--rewriter", dead_url, "--rewriter-retries", "0", "--rewrite-strict")
    assert generate(micro_model_folder, *options) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_generate_without_a_rewriter_is_refused_before_the_model_is_read(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path
) -> None:
    assert generate(micro_model_folder, "--rewrite", "normal") == 2
    assert "No rewriter is named" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_what_rewriting_gave_is_not_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--prompt", "a", "--rewritten", "b") == 2
    assert "Unknown option --rewritten" in capsys.readouterr().err
