"""Detectors of watermarks from local folders, against the library's own reading of their output."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from openhunyuan.base.errors import UserError
from openhunyuan.curate.models.detector import WatermarkDetector
from tests.curate.measures.test_measures import measured
from tests.curate.models import folders

NAMES = {0: "person", 1: "TV logo", 2: "watermark"}


def test_the_surest_mark_is_the_one_that_the_library_finds(tmp_path: Path) -> None:
    folder = folders.detector(tmp_path / "d-fine", NAMES)
    shown = list(folders.frames(2, 90, 120))
    detector = WatermarkDetector(path=str(folder)).load()
    processor = transformers.RTDetrImageProcessorPil.from_pretrained(folder)
    model = transformers.DFineForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(**processor(shown, return_tensors="pt"))
        out.logits[:, :, 0] = -100.0  # the library keeps as many as there are queries: persons would crowd marks out
    found = processor.post_process_object_detection(out, threshold=0.0, target_sizes=[(1, 1)] * 2)
    for (confidence, label, box), wanted in zip(detector.surest(shown), found, strict=True):
        mine = [i for i, number in enumerate(wanted["labels"].tolist()) if number in (1, 2)]
        best = mine[0]  # they come in order of confidence
        assert confidence == pytest.approx(float(wanted["scores"][best]), abs=1e-5)
        assert label == NAMES[int(wanted["labels"][best])]
        np.testing.assert_allclose(box, wanted["boxes"][best].clamp(0, 1).numpy(), atol=1e-5)


def test_a_clip_has_one_row_and_classes_are_chosen_by_name(tmp_path: Path) -> None:
    folder = str(folders.detector(tmp_path / "d-fine", NAMES))
    row = measured(WatermarkDetector(path=folder, batch=2, device="cpu"), folders.frames(60, 90, 120))
    assert 0 < row["confidence"] < 1 and 0 <= row["area"] <= 1 and row["label"] in ("TV logo", "watermark")
    assert measured(WatermarkDetector(path=folder, labels=("person",)), folders.frames(5))["label"] == "person"
    with pytest.raises(UserError, match="knows none of cat; its classes are person, TV logo, watermark"):
        WatermarkDetector(path=folder, labels=("cat",)).check()
    other = folders.detector(tmp_path / "other", {0: "person", 1: "dog"})
    with pytest.raises(UserError, match="nothing called watermark or logo"):
        WatermarkDetector(path=str(other)).check()
