"""Networks chosen by name: what is in the plan then, and what is refused before anything starts."""

from functools import partial
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.cli.main import main
from openhunyuan.curate.clip import Clip, clip_id
from openhunyuan.curate.decide import DUPLICATE, with_threshold
from openhunyuan.curate.ladder import YIELD, Ladder, SetReport, climb
from openhunyuan.curate.models.choice import NEEDED, PACKAGED, SCORES, Choice, with_networks
from openhunyuan.curate.models.transnetv2 import TransNetV2
from openhunyuan.curate.run import Plan, read_clips
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
    assert {"raft", "ppocr", "watermark_detector", "embedding", "clip_aesthetic", "dover", "heads"} < set(names)
    scores = {f.name: f.score for f in plan.filters}
    assert (scores["motion"], scores["text"]) == ("raft.speed", "ppocr.other_share")
    assert scores["overlay"] == "watermark_detector.confidence"
    known = {f"{m.name}.{c}" for m in plan.measures for c in m.columns} | {s for s in scores.values() if "clip." in s}
    assert set(scores.values()) <= known
    assert plan.crop and plan.crop.text == "ppocr"
    assert plan.duplicates and plan.concepts and plan.duplicates.by == plan.concepts.by == "embedding"
    described = plan.describe()
    assert sum(stage["weights"] is not None for stage in described["stages"]) == 11  # three come with the package
    assert not {"raft", "ppocr", "watermark_detector", "embedding", "clip_aesthetic", "dover"} & set(
        described["proxies"]
    )
    assert str(tmp_path) not in str(described)  # where weights lie is no part of what was run
    assert with_networks(PLAN, Choice()) == PLAN
    assert {m.name for m in PLAN.measures if m.weights} == set(PACKAGED)


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


def everything(folder: Path, **but: str) -> Choice:
    file = folder / "w.pth"
    file.write_bytes(b"not opened yet")
    chosen = {**dict(list(NEEDED)), **but}
    weights = {o: str(file) for (field, name), options in NEEDED.items() if chosen[field] == name for o in options}
    return Choice.model_validate({**chosen, **weights, "device": "cpu"})


def climbed(plan: Plan, calibrated: bool, thresholds: dict[str, str] | None = None) -> tuple[list[SetReport], Ladder]:
    """A hundred clips that differ by what models say about them, in the sets of the plan."""
    assert plan.ladder
    ladder = plan.ladder.model_copy(update={"calibrated": calibrated})
    for name, text in (thresholds or {}).items():
        ladder = ladder.changed(partial(with_threshold, text=text, measures=plan.measures, more=(YIELD,)), name)
    fixed = {"clip.seconds": 4, "clip.short_side": 1080, "clip.aspect": 1.5, "quality.contrast": 200}
    scores = ["dover.technical", "dover.aesthetic", "clip_aesthetic.aesthetic", "raft.speed"]
    clips = [
        Clip(
            id=clip_id(str(n), 0, 48), source="a.mp4", source_sha256=str(n), start_frame=0, end_frame=48, fps=24.0,
            height=1080, width=1620, scores={**fixed, **{s: 10 + n * (7 + i) % 100 for i, s in enumerate(scores)}},
        )
        for n in range(100)
    ]  # fmt: skip
    rests = {"crop": "ppocr", DUPLICATE: "embedding"}
    return climb(clips, ladder, plan.filters, plan.measures, lambda *_: {}, rests).reports, ladder


def test_with_all_networks_no_set_rests_on_a_stand_in(tmp_path: Path) -> None:
    plan = with_networks(LADDER_PLAN, everything(tmp_path))
    reports, ladder = climbed(plan, calibrated=True)
    assert [r.refused for r in reports] == [None] * 4
    scores = {(one.name, f.name): (f.score, f.removes) for one in ladder.of("video") for f in one.filters}
    assert scores["360p", "clarity"] == ("dover.technical", 10)
    assert scores["540p", "aesthetic"] == ("clip_aesthetic.aesthetic", 13)
    images = {f.score for one in ladder.of("image") for f in one.filters}
    assert "blur.width" in images and not images & {"dover.technical", "dover.aesthetic"}
    with_dover = with_networks(LADDER_PLAN, everything(tmp_path, aesthetic="none"))
    (third,) = [r for r in climbed(with_dover, calibrated=True)[0] if r.name == "540p"]
    (line,) = [a for a in third.filters if a.score == "dover.aesthetic"]
    assert (line.group, third.refused) == ("aesthetic", None)
    assert line.at_least and line.removed > 0, "figure 4's aesthetic part is taken by the model"
    # Without an aesthetic model, colourfulness stands in for one; contrast and frozen frames stand in for nothing.
    neither = with_networks(LADDER_PLAN, everything(tmp_path, quality="statistics", aesthetic="none"))
    refused = {r.name: r.refused for r in climbed(neither, False)[0]}
    assert "blur: " in str(refused["540p"]) and "quality: " in str(refused["540p"])
    only_laion = with_networks(LADDER_PLAN, everything(tmp_path, quality="statistics"))
    refused = {r.name: r.refused for r in climbed(only_laion, False)[0]}
    assert "blur: " in str(refused["540p"]) and "quality: " not in str(refused["540p"])


def test_images_are_filtered_by_text_and_by_a_detector(tmp_path: Path) -> None:
    scores = {"clip.short_side": 600.0, "quality.contrast": 200.0, "blur.width": 1.0, "crop.left": 1.0}
    with_detector = with_networks(LADDER_PLAN, everything(tmp_path, text="strokes"))
    for plan, mark, marked_passes in (
        (LADDER_PLAN, {}, True),  # nothing says anything about marks on a still
        (with_detector, {"watermark_detector.confidence": 0.9}, False),
    ):
        found = [{}, {"text.other_share": 0.2}, mark]
        images = [
            Clip(
                id=clip_id(str(n), 0, 1), kind="image", source="a.png", source_sha256=str(n), start_frame=0,
                end_frame=1, fps=1.0, height=600, width=600, scores={**scores, **more},
            )
            for n, more in enumerate(found)
        ]  # fmt: skip
        assert plan.ladder
        both = ("image-256", "image-512")
        sets = [clip.sets for clip in climb(images, plan.ladder, plan.filters, plan.measures).clips]
        assert sets == [both, (), both if marked_passes else ()]


def test_a_models_score_without_a_limit_waits_for_one(tmp_path: Path) -> None:
    plan = with_networks(LADDER_PLAN, everything(tmp_path, aesthetic="none"))
    waiting = {r.name: r.waiting for r in climbed(plan, calibrated=False)[0]}
    assert waiting == {
        "256p": (),
        "360p": ("dover.technical",),
        "540p": ("dover.aesthetic", "dover.technical"),
        "720p": ("dover.technical",),
    }
    given = {"360p": "dover.technical>=30", "540p": "dover.aesthetic>=60"}
    reports, ladder = climbed(plan, False, given)
    assert [r.waiting for r in reports] == [()] * 4, "what is given to one set holds above it"
    assert [(a.filter, a.at_least) for a in reports[2].filters if a.score.startswith("dover.")] == [
        ("aesthetic", 60.0),
        ("clarity", 30.0),
    ]
    assert [f.removes for f in ladder.sets[2].filters if f.score == "dover.aesthetic"] == [13.0]
    assert "360p was made without a limit on dover.technical" in climbed(plan, False)[0][1].lacks
    assert reports[1].lacks == ""


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
    option_name = field.replace("_", "-")
    with pytest.raises(UserError, match=f"--{option_name} {name} needs --.*; nothing is downloaded"):
        with_networks(PLAN, Choice(**{field: name}))
    option = NEEDED[field, name][0]
    with pytest.raises(UserError, match=f"does nothing without --{option_name} {name}"):
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
    assert "By embeddings;" in page
    published = page.split("ran a published network")[1].split("</ul>")[0]
    assert "<code>embedding</code>" in published and "blur" not in published and "niqe" not in published
    assert "<code>blur</code>" in page.split("ran weights of this package")[1].split("</ul>")[0]
    assert "scores without a threshold" in page and "<b>quality.noise</b>" in page
    capsys.readouterr()
    transnet.write_bytes(b"\x80\x04 not weights")
    (tmp_path / "data2").mkdir()
    assert main([*args[:3], str(tmp_path / "data2"), *args[4:]]) == 2
    error = capsys.readouterr().err.strip()
    assert "cannot be read as a file of tensors alone" in error and "\n" not in error
    assert not list((tmp_path / "data2").iterdir())
