import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_image, write_video
from openhunyuan.train.report import chart, charts_of, series_of, write_report


@pytest.fixture
def run_dir(tmp_path):
    config = {"name": "a <run>", "stages": [{"steps": 30}]}
    (tmp_path / "run.json").write_text(json.dumps({"train": config}))
    records = [{"step": 10 * i, "time": 1.0, "loss": 1.0 / i, "stage": "s", "lr": float("inf")} for i in (1, 2, 3)]
    records.append({"step": 30, "time": 2.0, "val/psnr_image": 20.0, "val/psnr_video": 30.0})
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 31, "lo']))  # a crash cut the last line off
    (tmp_path / "faults.jsonl").write_text('{"step": 7, "reason": "loss is not finite", "went_back_to": 5}\n')
    for step in (5, 10, 20, 25, 30):
        folder = tmp_path / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        write_image(folder / "00.png", np.full((8, 8, 3), 5 * step, np.uint8), {})
        ramp = np.stack([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(9)])
        write_video(folder / "01.mp4", ramp, 8.0, {})
    return tmp_path


def test_the_page_shows_curves_samples_and_faults_and_needs_nothing_else(run_dir):
    page = write_report(run_dir).read_text()
    assert "a &lt;run&gt;" in page and "30 of 30 steps" in page and "loss is not finite" in page
    assert page.count("<polyline") == 1 and page.count("<circle") == 2  # one loss; two validations of a single step
    assert [int(n) for n in re.findall(r"<h3>step (\d+)", page)] == [5, 20, 30]
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    pictures = [Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"base64,([^\"]+)", page)]
    assert [p.size for p in pictures] == [(8, 8), (48, 16)] * 3
    assert pictures[-2].getpixel((0, 0)) == (150, 150, 150)
    first, middle, last = (pictures[1].getpixel((x, 8))[0] for x in (8, 24, 40))
    assert abs(first) < 6 and abs(middle - 80) < 6 and abs(last - 160) < 6


def test_curves_go_through_their_points():
    svg = chart("t", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)]})
    (points,) = re.findall(r'points="([^"]+)"', svg)
    xy = np.array([[float(n) for n in pair.split(",")] for pair in points.split()])
    assert np.allclose(np.diff(xy[:, 0]), (640 - 64) / 2, atol=0.2)
    assert (
        xy[0, 1] == max(xy[:, 1]) and xy[1, 1] == min(xy[:, 1]) and xy[2, 1] == pytest.approx(xy[:2, 1].mean(), abs=0.2)
    )
    assert "(logarithmic)" in chart("t", {"a": [(0, 1e-4), (1, 1.0)]})
    assert "(logarithmic)" not in chart("t", {"a": [(0, -1.0), (1, 1e6)]})


def test_numbers_are_grouped_as_they_are_compared():
    records = [{"step": 1, "time": 0.0, "loss": 1.0, "loss_image_to_video": 2.0, "val/psnr_a": 1.0, "grad_norm": 3.0}]
    charts = charts_of(series_of(records))
    assert list(charts) == ["loss", "val/psnr", "grad_norm"] and set(charts["loss"]) == {"loss", "loss_image_to_video"}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
