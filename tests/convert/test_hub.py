"""Downloads from a local hub: the licence first, resuming, and what can go wrong."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.cli.main import main
from openhunyuan.convert.hub import RELEASED, Download, Released, Repository, released
from tests.convert.hub_server import Hub, Server

WEIGHTS = bytes(range(256)) * 4000
LICENCE = "TENCENT HUNYUAN COMMUNITY LICENSE AGREEMENT\nTHIS DOES NOT APPLY IN THE EUROPEAN UNION\n"
DIT = "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    files = {
        "tencent/HunyuanVideo": {
            "LICENSE.txt": LICENCE.encode(),
            "README.md": b"# HunyuanVideo",
            DIT: WEIGHTS,
            DIT.replace(".pt", "_fp8.pt"): WEIGHTS[:5000],
            DIT.replace(".pt", "_fp8_map.pt"): b"scales",
            "hunyuan-video-t2v-720p/vae/config.json": b"{}",
            "hunyuan-video-t2v-720p/vae/pytorch_model.pt": b"vae",
        },
        "xtuner/llava-llama-3-8b-v1_1-transformers": {"config.json": b"{}", "model.safetensors": b"llm", "a.bin": b"x"},
        "openai/clip-vit-large-patch14": {
            "config.json": b"{}",
            "model.safetensors": b"clip",
            "flax_model.msgpack": b"x",
        },
        "hunyuanvideo-community/HunyuanVideo": {"model_index.json": b"{}", "vae/config.json": b"{}"},
    }
    server = Server(Hub(files))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server.hub, server.address
    server.shutdown()
    server.server_close()


def fetch(name: str, target: Path, address: str) -> Download:
    download = Download(released(name), target, endpoint=address)
    download.licence()
    download.check()
    download.run()
    return download


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }


def test_official_model_with_its_text_encoders(hub: tuple[Hub, str], tmp_path: Path) -> None:
    fetch("hunyuanvideo-official", tmp_path / "ckpts", hub[1])
    assert listing(tmp_path / "ckpts") == {
        "LICENSE.txt": LICENCE.encode(),
        DIT: WEIGHTS,
        "hunyuan-video-t2v-720p/vae/config.json": b"{}",
        "hunyuan-video-t2v-720p/vae/pytorch_model.pt": b"vae",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": b"llm",
        "text_encoder_2/config.json": b"{}",
        "text_encoder_2/model.safetensors": b"clip",
    }


def test_eight_bit_files_come_with_their_scales(hub: tuple[Hub, str], tmp_path: Path) -> None:
    fetch("hunyuanvideo-fp8", tmp_path, hub[1])
    names = {Path(name).name for name in listing(tmp_path)}
    assert {"mp_rank_00_model_states_fp8.pt", "mp_rank_00_model_states_fp8_map.pt"} <= names
    assert "mp_rank_00_model_states.pt" not in names


def test_the_licence_is_fetched_first_and_kept(hub: tuple[Hub, str], tmp_path: Path) -> None:
    """The community folder has no licence file: the text of the official repository goes with its weights."""
    download = Download(released("hunyuanvideo"), tmp_path / "model", endpoint=hub[1])
    assert download.licence() == LICENCE
    assert [(repository, name) for repository, name, _ in hub[0].gets] == [("tencent/HunyuanVideo", "LICENSE.txt")]
    assert not (tmp_path / "model").exists()
    download.run()
    assert (tmp_path / "model" / "LICENSE.txt").read_text() == LICENCE


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # The library waits between its own tries.
    # Written to disk piece by piece; the released files are thousands of its pieces long, this one is not.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 65536)
    hub[0].broken = DIT
    with pytest.raises(UserError, match=r"could not be fetched .*; check the network and run the command again"):
        fetch("hunyuanvideo-official", tmp_path, hub[1])
    assert DIT not in listing(tmp_path)
    hub[0].broken = None
    hub[0].gets.clear()
    fetch("hunyuanvideo-official", tmp_path, hub[1])
    assert listing(tmp_path)[DIT] == WEIGHTS
    starts = [start for _, name, start in hub[0].gets if name == DIT]
    assert len(starts) == 1
    assert starts[0] > len(WEIGHTS) // 2, "what was there must not be fetched again"
    assert not any(path.name.endswith(".incomplete") for path in tmp_path.rglob("*"))
    hub[0].gets.clear()
    fetch("hunyuanvideo-official", tmp_path, hub[1])
    assert [name for _, name, _ in hub[0].gets if not name.startswith("LICENSE")] == []


def test_a_file_that_arrives_spoiled_is_not_kept(hub: tuple[Hub, str], tmp_path: Path) -> None:
    hub[0].spoiled = DIT
    with pytest.raises(UserError, match="its SHA-256 differs"):
        fetch("hunyuanvideo-official", tmp_path, hub[1])
    assert DIT not in listing(tmp_path)
    assert not any(path.name.endswith(".incomplete") for path in tmp_path.rglob("*"))


def test_names_that_lead_out_of_the_folder_are_refused(hub: tuple[Hub, str], tmp_path: Path) -> None:
    hub[0].files["hunyuanvideo-community/HunyuanVideo"]["../../outside.json"] = b"x"
    with pytest.raises(UserError, match="lies outside of its folder"):
        fetch("hunyuanvideo", tmp_path / "a" / "b", hub[1])
    assert not (tmp_path / "outside.json").exists()


def test_what_can_go_wrong_is_one_sentence(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="Unknown model hunyuanvideo-i2; did you mean hunyuanvideo-i2v"):
        released("hunyuanvideo-i2")
    with pytest.raises(UserError, match="shows no repository tencent/HunyuanVideo-I2V"):
        Download(released("hunyuanvideo-i2v"), tmp_path, endpoint=hub[1]).licence()
    with pytest.raises(UserError, match="has no such revision"):
        Download(released("hunyuanvideo-official"), tmp_path, "v9", hub[1]).check()
    hub[0].gated.add("tencent/HunyuanVideo")
    with pytest.raises(UserError, match="asks for an account"):
        Download(released("hunyuanvideo"), tmp_path, endpoint=hub[1]).licence()
    hub[0].gated.clear()
    del hub[0].files["tencent/HunyuanVideo"]["LICENSE.txt"]
    with pytest.raises(UserError, match="shows no licence, so nothing is fetched"):
        Download(released("hunyuanvideo"), tmp_path, endpoint=hub[1]).licence()
    odd = Released("x", "tencent/HunyuanVideo", (Repository("tencent/HunyuanVideo", patterns=("*.gguf",)),))
    with pytest.raises(UserError, match=r"has none of the files \*\.gguf"):
        Download(odd, tmp_path, endpoint=hub[1]).check()
    with pytest.raises(UserError, match="could not be fetched"):
        Download(released("hunyuanvideo"), tmp_path, endpoint="http://127.0.0.1:9").licence()


@pytest.fixture
def command(hub: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The command finds the local hub where HF_ENDPOINT would lead it; the library reads that when it is imported."""
    original = Download.__init__

    def local(self: Download, model: Released, target: Path, revision: str | None = None) -> None:
        original(self, model, target, revision, hub[1])

    monkeypatch.setattr(Download, "__init__", local)
    return hub[0]


def test_the_command_asks_before_it_fetches(
    command: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    target = tmp_path / "ckpts"
    assert main(["download", "hunyuanvideo-official", str(target)]) == 2
    shown = capsys.readouterr().err
    assert "THIS DOES NOT APPLY IN THE EUROPEAN UNION" in shown
    for place in ("European Union", "United Kingdom", "South Korea"):
        assert place in shown
    assert "add --accept-licence" in shown
    assert not target.exists()

    assert main(["download", "hunyuanvideo-official", str(target), "--accept-licence"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{target}\n"
    assert (target / DIT).read_bytes() == WEIGHTS


class Terminal(io.StringIO):
    """Someone who looks and types."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_progress_bar(command: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert main(["download", "hunyuanvideo-official", str(tmp_path / "ckpts"), "--accept-licence"]) == 0
    assert re.search(r"model_states\.pt: 100%", screen.getvalue())


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("no\n", 2), ("\n", 2)])
def test_the_command_takes_an_answer(
    command: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["download", "hunyuanvideo", str(tmp_path / "model")]) == code
    assert (tmp_path / "model" / "model_index.json").exists() == (code == 0)


def test_the_command_lists_the_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["download"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RELEASED)
    (tmp_path / "file").touch()
    assert main(["download", "hunyuanvideo", str(tmp_path / "file")]) == 2
    assert "give a folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]
