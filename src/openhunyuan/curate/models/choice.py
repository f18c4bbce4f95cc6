"""Which published networks a curation runs, chosen by name; and the plan with them in it.

A network's measure stands beside or in the place of a default one, under its own name: its scores are never mixed with
those of a proxy in one column, and thresholds name what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record

if TYPE_CHECKING:
    from openhunyuan.curate.decide import Filter
    from openhunyuan.curate.measures.measure import Measure
    from openhunyuan.curate.run import Plan


class Choice(Record):
    """Networks by name, each with its weights. Nothing is downloaded."""

    shots: Literal["pyscenedetect", "transnetv2"] = Field(
        "pyscenedetect", description="Shot detector; transnetv2 is combined with the default one."
    )
    transnetv2_weights: str | None = Field(None, description="transnetv2-pytorch-weights.pth of the authors.")
    motion: Literal["dis", "farneback", "h264", "raft"] = Field(
        "dis",
        description="How motion is scored; the scales of farneback and h264 need a --threshold of their own.",
    )
    raft_weights: str | None = Field(None, description="raft_large_*.pth or raft_small_*.pth of torchvision.")
    text: Literal["strokes", "ppocr"] = Field("strokes", description="What finds text and subtitles.")
    ppocr_weights: str | None = Field(None, description="Folder of a PP-OCRv5 or v6 text detector for transformers.")
    overlay: Literal["lasting", "watermark", "detector"] = Field(
        "watermark", description="What finds watermarks and logos; watermark is the small network of the package."
    )
    watermark_weights: str | None = Field(None, description="Other weights for it, of `openhunyuan train watermark`.")
    detector_weights: str | None = Field(
        None, description="Folder of a D-FINE or RT-DETR detector with classes called watermark or logo."
    )
    clarity: Literal["edges", "blur"] = Field(
        "blur", description="What tells blurred clips; blur is the small network of the package."
    )
    blur_weights: str | None = Field(None, description="Other weights for it, of `openhunyuan train blur`.")
    embedding: Literal["fingerprint", "tower"] = Field(
        "fingerprint", description="What near-duplicates and concepts are found by."
    )
    tower_weights: str | None = Field(
        None, description="Folder of CLIP, SigLIP, SigLIP 2, VideoMAE, V-JEPA 2 or VideoPrism for transformers."
    )
    aesthetic: Literal["none", "laion"] = Field(
        "none",
        description="Score clip_aesthetic.aesthetic: CLIP and a head; in the sets of a ladder in the place of "
        "colourfulness.",
    )
    laion_clip: str | None = Field(None, description="Folder of CLIP ViT-L/14 for transformers.")
    laion_head: str | None = Field(None, description="sac+logos+ava1-l14-linearMSE.pth or the like, or .safetensors.")
    quality: Literal["statistics", "dover"] = Field(
        "statistics",
        description="dover adds the scores dover.technical, dover.aesthetic and dover.overall; in the sets of a ladder "
        "they take the place of blur and colourfulness.",
    )
    dover_weights: str | None = Field(None, description="DOVER.pth or DOVER-Mobile.pth (no commercial use).")
    niqe_weights: str | None = Field(
        None, description="Good pictures' Gaussian for niqe.distance, of `openhunyuan curate fit-niqe`."
    )
    shot_scale: Literal["none", "faces", "detector"] = Field(
        "none", description="What measures the size of a head, by which captions call the shot scale; faces needs dlib."
    )
    shot_scale_weights: str | None = Field(
        None, description="Folder of a D-FINE or RT-DETR detector with classes called face or head."
    )
    device: str = Field("auto", description="Where networks run: cpu, cuda, cuda:N, mps or auto.")
    batch: int = Field(8, ge=1, description="Pictures that go through a network at once.")


NEEDED = {
    ("shots", "transnetv2"): ("transnetv2_weights",),
    ("motion", "raft"): ("raft_weights",),
    ("text", "ppocr"): ("ppocr_weights",),
    ("overlay", "detector"): ("detector_weights",),
    ("embedding", "tower"): ("tower_weights",),
    ("aesthetic", "laion"): ("laion_clip", "laion_head"),
    ("quality", "dover"): ("dover_weights",),
    ("shot_scale", "detector"): ("shot_scale_weights",),
}

OWN = {("overlay", "watermark"): "watermark_weights", ("clarity", "blur"): "blur_weights"}
"""Small networks of the package, and the option that gives them other weights."""

PACKAGED = ("blur", "camera", "niqe", "watermark")
"""Measures whose weights come with the package, or are made by it; those of other stages are published."""


@dataclass(frozen=True)
class Limit:
    """What a default filter looks at: a score, and how much of it is allowed."""

    score: str
    limit: float


SCORES: dict[str, dict[str, Limit]] = {
    "overlay": {
        "lasting": Limit("overlay.strength", 0.0),
        "watermark": Limit("watermark.across", 0.9),
        "detector": Limit("watermark_detector.confidence", 0.5),
    },
    "clarity": {"edges": Limit("clarity.edge_width", 3.2), "blur": Limit("blur.width", 2.2)},
}
"""Limits that mean about the same, by field of `Choice` and its value; other limits on clarity are scaled by them."""


def with_networks(plan: Plan, choice: Choice) -> Plan:
    """The plan with the chosen networks. Raises UserError where weights are missing, or given and not asked for."""
    for (field, name), weights in NEEDED.items():
        chosen = getattr(choice, field) == name
        for option in weights:
            path = getattr(choice, option)
            if chosen and not path:
                raise UserError(f"--{_dashed(field)} {name} needs --{_dashed(option)}; nothing is downloaded.")
            if path and not chosen:
                raise UserError(f"--{_dashed(option)} does nothing without --{_dashed(field)} {name}.")
    for (field, name), option in OWN.items():
        if getattr(choice, option) and getattr(choice, field) != name:
            raise UserError(f"--{_dashed(option)} does nothing without --{field} {name}.")
    where: Any = {"device": choice.device, "batch": choice.batch}
    given = {option: str(getattr(choice, option)) for options in NEEDED.values() for option in options}
    if choice.shots == "transnetv2":
        from openhunyuan.curate.models.transnetv2 import TransNetV2Split

        plan = replace(
            plan, split=TransNetV2Split(path=given["transnetv2_weights"], **where, **plan.split.model_dump())
        )
    instead: dict[str, Measure] = {}
    beside: list[Measure] = []
    if choice.motion == "raft":
        from openhunyuan.curate.models.raft import Raft

        instead["motion"] = Raft(path=given["raft_weights"], **where)
    elif choice.motion != "dis":
        from openhunyuan.curate.measures.motion import Motion

        instead["motion"] = Motion(method=choice.motion)
    if choice.text == "ppocr":
        from openhunyuan.curate.models.ppocr import PPOcr

        instead["text"] = PPOcr(path=given["ppocr_weights"], **where)
        plan = replace(plan, crop=plan.crop and plan.crop.model_copy(update={"text": "ppocr"}))
    if choice.overlay == "detector":
        from openhunyuan.curate.models.detector import WatermarkDetector

        instead["overlay"] = instead["watermark"] = WatermarkDetector(path=given["detector_weights"], **where)
    elif choice.overlay == "watermark":
        from openhunyuan.curate.measures.watermark import Watermark

        instead["overlay"] = instead["watermark"] = Watermark(file=choice.watermark_weights or "")
    else:
        from openhunyuan.curate.measures.overlay import Overlay

        instead["watermark"] = Overlay()
    if choice.clarity == "blur":
        from openhunyuan.curate.measures.blur import Blur

        instead["clarity"] = instead["blur"] = Blur(file=choice.blur_weights or "")
    else:
        from openhunyuan.curate.measures.clarity import Clarity

        instead["blur"] = Clarity()
    if choice.niqe_weights:
        from openhunyuan.curate.measures.niqe import Niqe

        instead["niqe"] = Niqe(file=choice.niqe_weights)
    if choice.embedding == "tower":
        from openhunyuan.curate.models.embedding import Embedding

        beside.append(Embedding(path=given["tower_weights"], **where))
        plan = replace(
            plan,
            duplicates=plan.duplicates and plan.duplicates.model_copy(update={"by": "embedding"}),
            concepts=plan.concepts and plan.concepts.model_copy(update={"by": "embedding"}),
        )
    if choice.aesthetic == "laion":
        from openhunyuan.curate.models.aesthetic import ClipAesthetic

        beside.append(ClipAesthetic(path=given["laion_clip"], head=given["laion_head"], **where))
    if choice.quality == "dover":
        from openhunyuan.curate.models.dover import Dover

        beside.append(Dover(path=given["dover_weights"], **where))
    if choice.shot_scale == "faces":
        from openhunyuan.curate.measures.shot_scale import ShotScale

        beside.append(ShotScale())
    elif choice.shot_scale == "detector":
        from openhunyuan.curate.models.heads import HeadDetector

        beside.append(HeadDetector(path=given["shot_scale_weights"], **where))
    measures = (*(instead.get(measure.name, measure) for measure in plan.measures), *beside)

    ladder = plan.ladder
    for one in ladder.sets if ladder else ():
        filters = with_scores(one.filters, choice)
        filters = with_models(filters, choice) if one.kind == "video" else filters
        ladder = ladder and ladder.changed(lambda _, filters=filters: filters, one.name)
    return replace(plan, measures=measures, filters=with_scores(plan.filters, choice), ladder=ladder)


def with_scores(filters: Sequence[Filter], choice: Choice) -> tuple[Filter, ...]:
    """The filters as they look at the scores of the chosen networks.

    Limits are kept where the scale is the same. A filter on motion is left out where it is another: the published
    scorers count in pixels, or in shares of the picture's size.
    """
    changes: dict[str, dict[str, Any]] = {}
    if choice.motion == "raft":
        changes |= {f"motion.{c}": {"score": f"raft.{c}"} for c in ("speed", "camera_speed", "subject_speed")}
    if choice.text == "ppocr":
        changes |= {f"text.{c}": {"score": f"ppocr.{c}"} for c in ("share", "lines", "subtitle_top", "other_share")}
    other_scale = choice.motion in ("farneback", "h264")
    left = [f for f in filters if not (other_scale and f.score.startswith("motion."))]
    return tuple(_chosen(f.model_copy(update=changes.get(f.score, {})), choice) for f in left)


def with_models(filters: Sequence[Filter], choice: Choice) -> tuple[Filter, ...]:
    """The filters of a set of videos with models in the place of what stands in for them: an aesthetic score in that of
    colourfulness (LAION's where it is chosen, else DOVER's), DOVER's technical one in that of blur.

    They keep their part in figure 4 (`removes`). Nobody has tuned limits for them, so they have none: a calibrated set
    finds them, an absolute one goes without until it is given a threshold (`curate.ladder`).
    """
    aesthetic = {"name": "aesthetic", "reason": "is poor by an aesthetic model"}
    technical = {"score": "dover.technical", "reason": "is technically poor"}
    instead: dict[str, dict[str, Any]] = {}
    if choice.quality == "dover":
        instead = {limit.score: technical for limit in SCORES["clarity"].values()}
        instead["quality.colourfulness"] = {"score": "dover.aesthetic", **aesthetic}
    if choice.aesthetic == "laion":
        instead["quality.colourfulness"] = {"score": "clip_aesthetic.aesthetic", **aesthetic}
    open_ = {"at_least": None, "at_most": None}
    return tuple(f.model_copy(update={**open_, **instead[f.score]}) if f.score in instead else f for f in filters)


def _chosen(one: Filter, choice: Choice) -> Filter:
    """The filter on what finds marks or blur, as it looks at the chosen score; limits on clarity keep their ratio."""
    for field, named in SCORES.items():
        wanted = named[getattr(choice, field)]
        before = next((limit for limit in named.values() if limit.score == one.score), wanted)
        if before.score == one.score != wanted.score:
            at_most = wanted.limit
            if field == "clarity" and one.at_most is not None:
                at_most = round(one.at_most * wanted.limit / before.limit, 3)
            return one.model_copy(update={"score": wanted.score, "at_most": at_most})
    return one


def _dashed(option: str) -> str:
    return option.replace("_", "-")
