"""``generate`` with official lines and with files of prompts, through the whole command."""

from pathlib import Path

import numpy as np
import pytest

import openhunyuan.convert.load
from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.cli.main import main
from openhunyuan.infer.pipeline import Pipeline

PROMPT = "a large red circle moves right on a black background"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were opened, in order."""
    opened: list[str] = []
    plain = openhunyuan.convert.load.open_model

    def spy(name: str, *args: object, **fields: object) -> object:
        opened.append(name)
        return plain(name, *args, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(openhunyuan.convert.load, "open_model", spy)
    return opened


def test_an_official_line_makes_a_video(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path
) -> None:
    line = (
        f"--model {micro_model_folder} --video-size 16 40 --video-length 5 --infer-steps 2 --flow-reverse "
        "--flow-shift 7.0 --cfg-scale 1.0 --seed 42 --use-cpu-offload --save-path ./results"
    )
    assert main(["generate", "--prompt", PROMPT, *line.split()]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("results/a-large-red-circle")
    assert "--use-cpu-offload changes nothing yet" in err
    assert "rounded up to 16 48" in err
    frames, _ = read_video(out.strip())
    assert frames.shape == (5, 16, 48, 3)
    told = read_metadata(out.strip())
    assert (told["num_inference_steps"], told["flow_shift"], told["true_cfg_scale"], told["seed"]) == (2, 7.0, 1.0, 42)


def test_released_weights_that_are_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "--video-size 720 1280 --video-length 129 --infer-steps 50 --flow-reverse --save-path ./results"
    assert main(["generate", "--prompt", PROMPT, *line.split()]) == 2
    err = capsys.readouterr().err
    assert "not in ckpts/hunyuan-video-t2v-720p" in err
    assert len(err.splitlines()) == 1
    assert list(place.iterdir()) == []


def test_the_embedded_model_stands_in_for_small_videos(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    from openhunyuan.models.zoo import MODELS, ModelEntry

    monkeypatch.setitem(MODELS, "tiny", ModelEntry(micro_model_folder, "A stand-in of the stand-in."))
    assert main(["generate", "--prompt", PROMPT, "--video-length", "1", "--infer-steps", "1"]) == 0
    out, err = capsys.readouterr()
    assert "so the embedded model makes this" in err
    assert read_metadata(out.strip())["model"] == "tiny"


def test_only_the_first_of_several_processes_works(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    line = ["generate", "--prompt", PROMPT, "--model", str(micro_model_folder), "--ulysses-degree", "2"]
    monkeypatch.setenv("RANK", "1")
    assert main([*line, "--num-frames", "1"]) == 0
    assert capsys.readouterr() == ("", "")
    assert list(place.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    assert main([*line, "--num-frames", "1"]) == 0
    out, err = capsys.readouterr()
    assert "not spread over 2 devices" in err
    assert Path(out.strip()).is_file()


def test_a_file_of_prompts_with_one_load_one_failure_and_a_resumption(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    micro_model_folder: Path,
    loads: list[str],
) -> None:
    (place / "rows.csv").write_text(
        "prompt,seed,video_length,output_path\n"
        f"{PROMPT},1,,\n"
        "a cat,-3,,\n"
        "a small blue star,2,1,star.png\n"
        "a fragile thing,3,,\n",
    )
    command = ["generate", "--prompts", "rows.csv", "--model", str(micro_model_folder), "--save-path", "made"]
    plain = Pipeline.sample

    def fragile(self: Pipeline, request, *args, **fields):
        if request.prompt == "a fragile thing":
            raise MemoryError
        return plain(self, request, *args, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "sample", fragile)
        assert main(command) == 1
    out, err = capsys.readouterr()
    first = "made/a-large-red-circle-moves-right-on-a-black-background-seed1.mp4"
    assert out.splitlines() == [first, "star.png"]
    assert "2 made, 0 skipped, 2 failed." in err
    assert "seed is -3" in err
    assert "MemoryError" in err
    assert len(loads) == 1

    alone = Path("alone.mp4")
    single = ["--prompt", PROMPT, "--seed", "1", "--model", str(micro_model_folder), "--output-path", str(alone)]
    assert main(["generate", *single]) == 0
    assert np.array_equal(read_video(alone)[0], read_video(first)[0])

    capsys.readouterr()
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["made/a-fragile-thing-seed3.mp4"]
    assert "1 made, 2 skipped, 1 failed." in err
    assert len(loads) == 3

    (place / "good.jsonl").write_text('{"prompt": "a fragile thing", "seed": 3}\n')
    assert main([*command[:2], "good.jsonl", *command[3:]]) == 0
    assert "0 made, 1 skipped, 0 failed." in capsys.readouterr().err
    assert len(loads) == 3, "nothing to make, nothing to load"


def test_an_interrupt_says_what_is_left(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    (place / "rows.txt").write_text("a cat\na dog\n")

    def interrupted(self: Pipeline, request, *args, **fields):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "sample", interrupted)
    assert main(["generate", "--prompts", "rows.txt", "--model", str(micro_model_folder)]) == 130
    assert "2 not reached; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompts", "none.txt"], "does not exist"),
        (["--prompts", "rows.txt", "--prompt", "a"], "exclude each other"),
        (["--prompts", "rows.txt", "--output-path", "a.mp4"], "--output-dir"),
        (["--prompts", "rows.txt", "--model", "tinny"], "did you mean tiny"),
        (["--prompts", "rows.pdf"], "must end in .txt, .csv, .jsonl"),
        (["--prompt", "word " * 5000], "5000 words"),
        (["--prompt", "a", "--quant", "int3"], "quant is 'int3'"),
    ],
)
def test_refusals(place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    (place / "rows.txt").write_text("a cat\n")
    assert main(["generate", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in place.iterdir()] == ["rows.txt"]


def test_pictures_are_read_before_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path, loads: list[str]
) -> None:
    from PIL import Image

    (place / "text.png").write_text("no picture")
    Image.new("L", (5472, 3648)).save("large.png")
    common = ["generate", "--prompt", PROMPT, "--model", str(micro_model_folder), "--i2v-mode", "--i2v-image-path"]
    for name, message in (("text.png", "text.png is not an image"), ("none.png", "none.png does not exist")):
        assert main([*common, name]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    assert loads == []
    # A large one is no mistake: it is reduced, and that is said. This model makes videos from text alone.
    assert main([*common, "large.png"]) == 2
    err = capsys.readouterr().err
    assert "large.png, 5472x3648 pixels, is reduced" in err
    assert "from text alone" in err


def test_replay_computes_as_the_file_was_made(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    import openhunyuan.cli.replay as replay

    line = ["--prompt", PROMPT, "--seed", "1", "--model", str(micro_model_folder), "--num-frames", "1"]
    how = ["--dtype", "float32", "--quant", "fp8", "--text-precision", "bfloat16"]
    assert main(["generate", *line, *how, "--output-path", "a.png"]) == 0
    assert main(["generate", *line, "--output-path", "plain.png"]) == 0
    told = read_metadata("a.png")["made_by"]
    assert (told["dtype"], told["quant"], told["text_precision"]) == ("float32", "fp8", "bfloat16")
    assert not np.array_equal(read_video("a.png")[0], read_video("plain.png")[0])
    seen: list[tuple] = []
    plain = replay.open_pipeline

    def spy(*how: object) -> object:
        seen.append(how)
        return plain(*how)  # type: ignore[arg-type]

    monkeypatch.setattr(replay, "open_pipeline", spy)
    assert main(["replay", "a.png", "--output-path", "again.png"]) == 0
    assert seen[0][2:5] == ("float32", "fp8", "bfloat16")
    assert np.array_equal(read_video("a.png")[0], read_video("again.png")[0])


def test_replay_where_the_device_is_not(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    import openhunyuan.cli.replay as replay

    line = ["--prompt", PROMPT, "--seed", "1", "--model", str(micro_model_folder), "--num-frames", "1"]
    assert main(["generate", *line, "--device", "cpu", "--output-path", "a.png"]) == 0
    plain = replay.read_request

    def elsewhere(path: Path) -> tuple:
        request, made_by = plain(path)
        return request, {**made_by, "device": "cuda:99"}

    monkeypatch.setattr(replay, "read_request", elsewhere)
    assert main(["replay", "a.png", "--output-path", "b.png"]) == 0
    assert "made on cuda:99, which is not here" in capsys.readouterr().err
    assert main(["replay", "a.png", "--output-path", "c.png", "--device", "cuda:99"]) == 2
    # A model that is broken is one error, and nothing is said of the device.
    monkeypatch.setattr(replay, "read_request", plain)

    def broken(*how: object) -> None:
        raise UserError("The weights are broken.")

    monkeypatch.setattr(replay, "open_pipeline", broken)
    capsys.readouterr()
    assert main(["replay", "a.png", "--output-path", "d.png"]) == 2
    assert capsys.readouterr().err == "error: The weights are broken.\n"
