"""Files of prompts: rows, names, what is done already, and what fails alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_image
from openhunyuan.infer.batch import Job, plan, read_rows, run_jobs
from openhunyuan.infer.output import MADE_BY
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.record import Rewrite
from openhunyuan.models.zoo import ModelDefaults, ModelSpec

SPEC = ModelSpec(
    name="toy",
    defaults=ModelDefaults(height=32, width=32, num_frames=1, num_inference_steps=3, fps=8),
    sha256={"dit/model.safetensors": "a"},
)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def make(request: Request, weights: dict[str, str] = SPEC.sha256) -> None:
    """A file as ``generate`` leaves it, without a model."""
    assert request.output_path is not None
    metadata = {**request.model_dump(mode="json"), MADE_BY: {"weights": weights}}
    write_image(Path(request.output_path), np.zeros((32, 32, 3), np.uint8), metadata)
    Path(request.output_path).with_suffix(".json").write_text(json.dumps(metadata))


def fields(path: Path, *names: str, **common: object) -> list[tuple]:
    rows = read_rows(path, common, {"infer_steps": "num_inference_steps"})
    return [(row.line, *(getattr(row.request, name) for name in names)) for row in rows if row.request]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_files_have_a_prompt_a_line(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "a cat, running\r\n\r\n  一只猫 \n# not a comment", encoding)
    found = fields(path, "prompt", "seed", seed=7)
    assert found == [(1, "a cat, running", 7), (3, "一只猫", 7), (4, "# not a comment", 7)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_columns_are_fields_and_empty_cells_are_not_said(tmp_path: Path, delimiter: str) -> None:
    text = (
        'Prompt,seed,Infer-Steps,i2v_stability,image\n"a cat, ""big""\nand old",1,5,true,a.png\na dog,,,,\n\na cow,2\n'
    ).replace(",", delimiter)
    found = fields(write(tmp_path / "a.CSV", text), "prompt", "seed", "num_inference_steps", "i2v_stability", seed=9)
    cat = f'a cat{delimiter} "big"\nand old'
    assert found == [(3, cat, 1, 5, True), (4, "a dog", 9, None, False), (6, "a cow", 2, None, False)]


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a cat", "lora": ["a.safetensors:0.5"], "seed": 3},
        {"prompt": "a dog\u2028here", "seed": None},
        "a cow",
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert fields(path, "prompt", "seed", "lora", seed=1) == [
        (1, "a cat", 3, ("a.safetensors:0.5",)),
        (2, "a dog\u2028here", 1, ()),
        (3, "a cow", 1, ()),
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "a", "must end in .txt, .csv, .jsonl"),
        ("a.txt", " \n\n", "has no row"),
        ("a.csv", "prompt\n", "has no row"),
        ("a.csv", "", "no column prompt"),
        ("a.csv", "text,seed\na,1\n", "no column prompt"),
        ("a.csv", "prompt,sed\na,1\n", "Unknown field sed; did you mean seed"),
        ("a.csv", "prompt,model\na,tiny\n", "model cannot be set in a row"),
        ("a.csv", 'prompt\n"a\n', "not a CSV file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / name, text), {})


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "a.txt", {})
    with pytest.raises(UserError, match="not UTF-8"):
        read_rows(write(tmp_path / "a.txt", "é", "latin-1"), {})
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "b.txt", {})


def test_a_bad_row_is_marked_and_the_others_stay(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"prompt": "a"}\n{"prompt": "b", "seed": -1}\n{"prompt"\n[1]\n{"prompt": "c", "sed": 1}\n{"seed": 1}\n'
        '{"prompt": "d", "model": "x"}\n{"prompt": "' + "word " * 5000 + '"}\n',
    )
    rows = read_rows(path, {})
    assert [row.request is not None for row in rows] == [True] + [False] * 7
    said = ["seed is -1", "not JSON", "neither", "did you mean seed", "prompt is missing", "model cannot", "5000 words"]
    for row, words in zip(rows[1:], said, strict=True):
        assert row.error is not None
        assert words in row.error
    (short,) = read_rows(write(tmp_path / "b.csv", "prompt\na, b\n"), {})
    assert short.error is not None
    assert "quotes" in short.error


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(path: Path, **common: object) -> list[Job]:
    return plan(read_rows(path, {"output_dir": "out", **common}), SPEC)


def outcome(job: Job) -> tuple[int, str, str]:
    return job.line, job.status, str(job.path)


def test_a_run_is_resumed_where_it_stopped(place: Path) -> None:
    path = write(place / "a.csv", "prompt,seed\na cat,\na cat,\na cat,5\na dog,6\n")
    jobs = planned(path)
    names = ["out/a-cat.png", "out/a-cat-2.png", "out/a-cat-seed5.png", "out/a-dog-seed6.png"]
    assert [outcome(job) for job in jobs] == [(line + 2, "open", name) for line, name in enumerate(names)]
    done: list[Job] = []

    def interrupted(request: Request) -> None:
        if request.seed == 5:
            raise KeyboardInterrupt
        make(request)

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, interrupted, done.append)
    assert [job.status for job in done] == ["made", "made"]

    again = planned(path)
    assert [job.status for job in again] == ["skipped", "skipped", "open", "open"]
    assert [str(job.path) for job in again] == names
    run_jobs(again, make, done.append)
    assert [job.status for job in planned(path)] == ["skipped"] * 4
    # A row put in front changes no other row's name.
    more = write(place / "b.csv", "prompt,seed\na cow,\na cat,\na cat,\na cat,5\na dog,6\n")
    assert [job.status for job in planned(more)] == ["open", "skipped", "skipped", "skipped", "skipped"]


def test_another_request_or_other_weights_are_not_done(place: Path) -> None:
    path = write(place / "a.txt", "a cat\n")
    run_jobs(planned(path, seed=1), make, lambda job: None)
    assert planned(path, seed=1)[0].status == "skipped"
    (other,) = planned(path, seed=1, num_inference_steps=4)
    assert outcome(other) == (1, "open", "out/a-cat-seed1-2.png")
    spec = SPEC.model_copy(update={"sha256": {"dit/model.safetensors": "b"}})
    assert plan(read_rows(path, {"output_dir": "out", "seed": 1}), spec)[0].status == "open"
    # Where the file lies and whether previews are written makes no other video.
    assert planned(path, seed=1, preview=True)[0].status == "skipped"


def test_several_videos_of_a_row(place: Path) -> None:
    path = write(place / "a.csv", "prompt,seed,num_videos,output_path\na cat,5,2,\na dog,,2,x.png\n")
    assert [(str(job.path), job.request and job.request.num_videos) for job in planned(path)] == [
        ("out/a-cat-seed5.png", 1), ("out/a-cat-seed6.png", 1), ("x-1.png", 1), ("x-2.png", 1),
    ]  # fmt: skip


def test_two_rows_do_not_write_one_file(place: Path) -> None:
    path = write(place / "a.csv", "prompt,output_path\na cat,x.png\na dog,./x.png\n")
    first, second = planned(path)
    assert first.status == "open"
    assert second.status == "failed"
    assert second.error is not None
    assert "line 2 writes" in second.error


def test_foreign_files_are_not_replaced(place: Path) -> None:
    write_image(place / "x.png", np.zeros((8, 8, 3), np.uint8))
    (job,) = planned(write(place / "a.csv", "prompt,output_path\na cat,x.png\n"))
    assert job.status == "failed"
    assert job.error is not None
    assert "not made by openhunyuan" in job.error


def test_a_rewritten_prompt_counts_as_its_original(place: Path) -> None:
    path = write(place / "a.txt", "a cat\n")

    def rewritten(request: Request) -> None:
        result = Rewrite(mode="normal", original=request.prompt, text="a large cat", rewriter="toy")
        make(request.replace(prompt=result.text, rewritten=result))

    run_jobs(planned(path, rewrite="normal"), rewritten, lambda job: None)
    assert planned(path, rewrite="normal")[0].status == "skipped"
    assert planned(path)[0].status == "open"


def test_what_the_pipeline_decides_does_not_hide_a_finished_row(place: Path) -> None:
    """A picture sets the size, and released weights bring a negative prompt: neither is in the row."""
    path = write(place / "a.csv", "prompt,image,i2v_resolution\na cat,cat.png,360p\n")
    spec = SPEC.model_copy(update={"sha256": {}})

    def released(request: Request) -> None:
        make(request.replace(height=48, width=64, negative_prompt="blur"), weights={})

    def status(**common: object) -> str:
        return plan(read_rows(path, {"output_dir": "out", **common}), spec)[0].status

    run_jobs(plan(read_rows(path, {"output_dir": "out"}), spec), released, lambda job: None)
    assert status() == "skipped"
    assert status(negative_prompt="noise") == "open"
    assert status(image="cat.png", i2v_stability=True) == "open"
    # Of a model whose files are known, another size or negative prompt is another request.
    rows = read_rows(write(place / "b.csv", "prompt\na dog\n"), {"output_dir": "out"})
    run_jobs(plan(rows, SPEC), lambda request: make(request.replace(height=48)), lambda job: None)
    assert plan(rows, SPEC)[0].status == "open"


def test_a_failure_ends_only_its_own_row(place: Path) -> None:
    path = write(place / "a.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c", "fps": 0}\n{"prompt": "d"}\n')

    def fragile(request: Request) -> None:
        if request.prompt == "a":
            raise RuntimeError("out of\nmemory")
        if request.prompt == "b":
            raise UserError("The disk is full.")
        make(request)

    done: list[Job] = []
    run_jobs(planned(path), fragile, done.append)
    assert [(job.line, job.status, job.error) for job in done] == [
        (1, "failed", "RuntimeError: out of memory"),
        (2, "failed", "The disk is full."),
        (3, "failed", "fps is 0, but it must be above 0 and at most 240."),
        (4, "made", None),
    ]
    assert [job.status for job in planned(path)] == ["open", "open", "failed", "skipped"]
