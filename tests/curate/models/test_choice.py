"""Networks chosen by name: what is in the plan then, and what is refused before anything starts."""

from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.cli.main import main
from openhunyuan.curate.models.choice import NEEDED, SCORES, Choice, with_networks
from openhunyuan.curate.models.transnetv2 import TransNetV2
from openhunyuan.curate.run import read_clips
from openhunyuan.curate.tables import read_rows
from openhunyuan.recipes.curate import LADDER_PLAN, PLAN
from tests.curate.films import save, shot
from tests.curate.models import folders
from tests.curate.models.made_up import made_up

LASTING = {"overlay": "lasting", "clarity": "edges"}


def test_every_network_takes_its_place_under_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"not opened yet")
    weights = {option: str(file) for options in NEEDED.values() for option in options}
    plan = with_networks(PLAN, Choice(**dict(list(NEEDED)), **weights, device="cpu", batch=2))
    names = [measure.name for measure in plan.measures]
    assert not {"motion", "text", "overlay"} & set(names)
    assert {"raft", "ppocr", "watermark_detector", "embedding", "clip_aesthetic", "dover"} < set(names)
    scores = {f.name: f.score for f in plan.filters}
    assert (scores["motion"], scores["text"]) == ("raft.speed", "ppocr.other_share")
    assert scores["overlay"] == "watermark_detector.confidence"
    known = {f"{m.name}.{c}" for m in plan.measures for c in m.columns} | {s for s in scores.values() if "clip." in s}
    assert set(scores.values()) <= known
    assert plan.crop and plan.crop.text == "ppocr"
    assert plan.duplicates and plan.concepts and plan.duplicates.by == plan.concepts.by == "embedding"
    described = plan.describe()
    assert sum(stage["weights"] is not None for stage in described["stages"]) == 10  # three come with the package
    assert not {"raft", "ppocr", "watermark_detector", "embedding", "clip_aesthetic", "dover"} & set(
        described["proxies"]
    )
    assert str(tmp_path) not in str(described)  # where weights lie is no part of what was run
    assert with_networks(PLAN, Choice()) == PLAN


def test_small_networks_and_heuristics_stand_in_for_each_other(tmp_path: Path) -> None:
    networks = with_networks(PLAN, Choice(overlay="watermark", clarity="blur"))
    heuristics = with_networks(PLAN, Choice(overlay="lasting", clarity="edges"))
    for plan, names, scores in (
        (networks, {"watermark", "blur"}, ("watermark.across", "blur.width")),
        (heuristics, {"overlay", "clarity"}, ("overlay.strength", "clarity.edge_width")),
    ):
        assert names == {m.name for m in plan.measures} & {"watermark", "blur", "overlay", "clarity"}
        found = {f.name: f for f in plan.filters}
        assert (found["overlay"].score, found["clarity"].score) == scores
        assert found["overlay"].at_most == SCORES["overlay"]["watermark" if plan is networks else "lasting"].limit
        known = {f"{m.name}.{c}" for m in plan.measures for c in m.columns}
        assert {f.score for f in plan.filters if not f.score.startswith("clip.")} <= known
    for plan, other in ((networks, heuristics), (heuristics, networks)):
        choice = Choice(overlay="watermark", clarity="blur") if plan is networks else Choice(**LASTING)
        assert with_networks(other, choice) == plan
    weights = {stage["name"]: stage["weights"] for stage in networks.describe()["stages"]}
    assert weights["watermark"] != weights["blur"] is not None is not weights["watermark"]
    with pytest.raises(UserError, match="--blur-weights does nothing without --clarity blur"):
        with_networks(PLAN, Choice(clarity="edges", blur_weights="file"))


def test_limits_on_clarity_keep_their_ratio() -> None:
    ladder = with_networks(LADDER_PLAN, Choice(clarity="blur")).ladder
    before = with_networks(LADDER_PLAN, Choice(clarity="edges")).ladder
    assert ladder and before
    ratio = SCORES["clarity"]["blur"].limit / SCORES["clarity"]["edges"].limit
    pairs = [
        (new.at_most, old.at_most)
        for one, other in zip(ladder.sets, before.sets, strict=True)
        for new, old in zip(one.filters, other.filters, strict=True)
        if old.score == "clarity.edge_width"
    ]
    assert len(pairs) == 5
    assert all(new == pytest.approx(ratio * old, abs=2e-3) for new, old in pairs if new and old)


def test_published_scorers_have_no_threshold_of_another_scale() -> None:
    plan = with_networks(PLAN, Choice(motion="farneback"))
    assert "motion.speed" not in [f.score for f in plan.filters]


@pytest.mark.parametrize("field, name", NEEDED)
def test_weights_are_needed_and_must_be_asked_for(field: str, name: str) -> None:
    with pytest.raises(UserError, match=f"--{field} {name} needs --.*; nothing is downloaded"):
        with_networks(PLAN, Choice(**{field: name}))
    option = NEEDED[field, name][0]
    with pytest.raises(UserError, match=f"does nothing without --{field} {name}"):
        with_networks(PLAN, Choice(**{option: "file"}))


def test_a_run_with_networks_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 24), shot(2, 20))
    transnet = tmp_path / "transnetv2.pth"
    state = made_up(TransNetV2())
    state["cls_layer1.bias"] -= 100  # sees no boundary, so that the default's are left
    torch.save(state, transnet)
    tower = folders.clip(tmp_path / "clip")
    data = tmp_path / "data"
    args = ["curate", str(tmp_path / "raw"), "--output", str(data), "--workers", "0", "--device", "cpu"]
    args += ["--shots", "transnetv2", "--transnetv2-weights", str(transnet)]
    args += ["--embedding", "tower", "--tower-weights", str(tower)]
    args += ["--threshold", "blur.width<=90", "--threshold", "clip.seconds>=0.5", "--without", "overlay"]
    assert main(args) == 0
    clips = read_clips(data)
    assert [(c.start_frame, c.end_frame) for c in clips] == [(0, 24), (24, 44)]
    assert all(c.concept is not None for c in clips if not c.dropped)
    (table,) = (data / "tables/embedding").iterdir()
    assert {len(rows[0]["vector"]) for rows in read_rows(table).values()} == {24}
    assert main(["curate", "report", str(data)]) == 0
    page = (data / "report.html").read_text()
    assert "By embeddings;" in page and "ran a published network" in page and "<code>embedding</code>" in page
    capsys.readouterr()
    transnet.write_bytes(b"\x80\x04 not weights")
    (tmp_path / "data2").mkdir()
    assert main([*args[:3], str(tmp_path / "data2"), *args[4:]]) == 2
    error = capsys.readouterr().err.strip()
    assert "cannot be read as a file of tensors alone" in error and "\n" not in error
    assert not list((tmp_path / "data2").iterdir())
