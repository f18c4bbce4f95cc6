"""Which published networks a curation runs, chosen by name; and the plan with them in it.

A network's measure stands beside or in the place of a default one, under its own name: its scores are never mixed with
those of a proxy in one column, and thresholds name what they are for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record

if TYPE_CHECKING:
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
    overlay: Literal["lasting", "detector"] = Field("lasting", description="What finds watermarks and logos.")
    detector_weights: str | None = Field(
        None, description="Folder of a D-FINE or RT-DETR detector with classes called watermark or logo."
    )
    embedding: Literal["fingerprint", "tower"] = Field(
        "fingerprint", description="What near-duplicates and concepts are found by."
    )
    tower_weights: str | None = Field(
        None, description="Folder of CLIP, SigLIP, SigLIP 2, VideoMAE, V-JEPA 2 or VideoPrism for transformers."
    )
    aesthetic: Literal["none", "laion"] = Field("none", description="Score clip_aesthetic.aesthetic: CLIP and a head.")
    laion_clip: str | None = Field(None, description="Folder of CLIP ViT-L/14 for transformers.")
    laion_head: str | None = Field(None, description="sac+logos+ava1-l14-linearMSE.pth or the like, or .safetensors.")
    quality: Literal["statistics", "dover"] = Field(
        "statistics", description="dover adds the scores dover.technical, dover.aesthetic and dover.overall."
    )
    dover_weights: str | None = Field(None, description="DOVER.pth or DOVER-Mobile.pth (no commercial use).")
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
}


def with_networks(plan: Plan, choice: Choice) -> Plan:
    """The plan with the chosen networks. Raises UserError where weights are missing, or given and not asked for."""
    for (field, name), weights in NEEDED.items():
        chosen = getattr(choice, field) == name
        for option in weights:
            given = getattr(choice, option)
            if chosen and not given:
                raise UserError(f"--{field} {name} needs --{_dashed(option)}; nothing is downloaded.")
            if given and not chosen:
                raise UserError(f"--{_dashed(option)} does nothing without --{field} {name}.")
    where = {"device": choice.device, "batch": choice.batch}
    if choice.shots == "transnetv2":
        from openhunyuan.curate.models.transnetv2 import TransNetV2Split

        plan = replace(plan, split=TransNetV2Split(path=choice.transnetv2_weights, **where, **plan.split.model_dump()))
    if choice.motion == "raft":
        from openhunyuan.curate.models.raft import Raft

        plan = _instead(plan, "motion", Raft(path=choice.raft_weights, **where), {"motion.speed": "raft.speed"})
    elif choice.motion != "dis":
        from openhunyuan.curate.measures.motion import Motion

        # The published scores have other scales: the threshold for one would be nonsense for another.
        plan = _instead(plan, "motion", Motion(method=choice.motion), {"motion.speed": None})
    if choice.text == "ppocr":
        from openhunyuan.curate.models.ppocr import PPOcr

        found = PPOcr(path=choice.ppocr_weights, **where)
        plan = _instead(plan, "text", found, {"text.other_share": "ppocr.other_share", "text.share": "ppocr.share"})
        plan = replace(plan, crop=plan.crop and plan.crop.model_copy(update={"text": found.name}))
    if choice.overlay == "detector":
        from openhunyuan.curate.models.detector import WatermarkDetector

        found = WatermarkDetector(path=choice.detector_weights, **where)
        plan = _instead(plan, "overlay", found, {"overlay.strength": "watermark_detector.confidence"})
        filters = [
            f.model_copy(update={"at_most": 0.5}) if f.score == "watermark_detector.confidence" else f
            for f in plan.filters
        ]
        plan = replace(plan, filters=tuple(filters))
    if choice.embedding == "tower":
        from openhunyuan.curate.models.embedding import Embedding

        plan = replace(
            plan,
            measures=(*plan.measures, Embedding(path=choice.tower_weights, **where)),
            duplicates=plan.duplicates and plan.duplicates.model_copy(update={"by": "embedding"}),
            concepts=plan.concepts and plan.concepts.model_copy(update={"by": "embedding"}),
        )
    if choice.aesthetic == "laion":
        from openhunyuan.curate.models.aesthetic import ClipAesthetic

        judge = ClipAesthetic(path=choice.laion_clip, head=choice.laion_head, **where)
        plan = replace(plan, measures=(*plan.measures, judge))
    if choice.quality == "dover":
        from openhunyuan.curate.models.dover import Dover

        plan = replace(plan, measures=(*plan.measures, Dover(path=choice.dover_weights, **where)))
    return plan


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def _instead(plan: Plan, name: str, measure: Measure, scores: dict[str, str | None]) -> Plan:
    """The plan with another measure in the place of the one called `name`. scores: what filters look at from now on;
    a filter whose score has None there is left out."""
    filters = [f.model_copy(update={"score": scores.get(f.score, f.score)}) for f in plan.filters]
    return replace(
        plan,
        measures=tuple(measure if m.name == name else m for m in plan.measures),
        filters=tuple(f for f in filters if f.score is not None),
    )
