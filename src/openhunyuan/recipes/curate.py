"""The curation plans: which stages run over footage, in which order, with which thresholds.

`PLAN` makes one set. `LADDER_PLAN` makes the report's sets of rising quality, each a part of the one before, and two
sets of images.

All of it runs on a CPU without weights of others; watermarks and blur are found by small networks of the
package (the heuristics by `--overlay lasting` and `--clarity edges`). The measures are named as what they are; none
stands for a published model (`run.json` lists them under `proxies`). Thresholds were set on rendered footage with
planted defects and looked at on a
few real clips (docs/results/curation.md); they are a start, not the report's, which were never published. What is
published is how much each set of the ladder keeps (figure 4): `keep`, and `removes` of each group, in per cent of the
pool; a calibrated run finds thresholds that keep as much.
"""

from __future__ import annotations

from dataclasses import replace

from openhunyuan.curate.concepts import Concepts
from openhunyuan.curate.cut import Cut
from openhunyuan.curate.decide import Crop, Filter
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.ladder import YIELD, Ladder, TrainingSet
from openhunyuan.curate.measures.blur import Blur
from openhunyuan.curate.measures.border import Border
from openhunyuan.curate.measures.camera import Camera
from openhunyuan.curate.measures.clear_start import ClearStart
from openhunyuan.curate.measures.fingerprint import Fingerprint
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.niqe import Niqe
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.measures.text import Text
from openhunyuan.curate.measures.watermark import Watermark
from openhunyuan.curate.run import Plan
from openhunyuan.curate.split import Split

MEASURES = (
    ClearStart(),
    Border(),
    Motion(),
    Camera(),
    Blur(),
    Quality(),
    Niqe(),
    Text(),
    Watermark(),
    Fingerprint(),
    Strip(),
)

FILTERS = (
    Filter(name="duration", score="clip.seconds", at_least=1.0, reason="is too short"),
    Filter(name="size", score="clip.short_side", at_least=64, reason="is too small"),
    Filter(name="aspect", score="clip.aspect", at_least=0.25, at_most=4.0, reason="is too narrow or too wide"),
    Filter(name="motion", score="motion.speed", at_least=1.0, reason="hardly moves"),
    Filter(name="frozen", score="quality.frozen_share", at_most=0.5, reason="repeats frames"),
    Filter(name="contrast", score="quality.contrast", at_least=45.0, reason="has hardly any contrast"),
    Filter(name="clarity", score="blur.width", at_most=2.2, reason="is blurred"),
    Filter(name="overlay", score="watermark.across", at_most=0.9, reason="has a watermark or logo"),
    Filter(name="text", score="text.other_share", at_most=0.01, reason="has text on it"),
)

PLAN = Plan(
    split=Split(max_seconds=20.0),
    measures=MEASURES,
    filters=FILTERS,
    crop=Crop(),
    duplicates=Duplicates(),
    concepts=Concepts(),
    cut=Cut(),
)

POOL = FILTERS[:3]
"""What holds for every set of the ladder: duration, size and aspect."""


def _at_least(name: str, score: str, value: float, reason: str, group: str = "other", removes: float = 0.0) -> Filter:
    return Filter(name=name, score=score, at_least=value, reason=reason, group=group, removes=removes)


def _at_most(name: str, score: str, value: float, reason: str, group: str = "other", removes: float = 0.0) -> Filter:
    return Filter(name=name, score=score, at_most=value, reason=reason, group=group, removes=removes)


def _side(pixels: int) -> Filter:
    return _at_least("short side", "clip.short_side", pixels, f"has fewer than {pixels} lines", "source")


def _moves(speed: float, removes: float = 0.0) -> Filter:
    return _at_least("motion", "motion.speed", speed, "hardly moves", "motion", removes)


def _contrast(levels: float, removes: float = 0.0) -> Filter:
    return _at_least("contrast", "quality.contrast", levels, "has hardly any contrast", "other", removes)


def _clear(width: float, removes: float = 0.0) -> Filter:
    return _at_most("clarity", "blur.width", width, "is blurred", "clarity", removes)


def _text(share: float, removes: float = 0.0) -> Filter:
    return _at_most("text", "text.other_share", share, "has text on it", "text", removes)


_SUBTITLES = _at_least("subtitles", "crop.left", 0.8, "has subtitles that take too much of the picture", "text")
_MARK = _at_most("overlay", "watermark.across", 0.9, "has a watermark or logo")

SETS = (
    TrainingSet(
        name="256p",
        keep=0.5,
        filters=(
            _side(256),
            _at_most("frozen", "quality.frozen_share", 0.5, "repeats frames"),
            _moves(1.0, removes=20),
            _contrast(30.0, removes=5),
        ),
    ),
    TrainingSet(
        name="360p",
        keep=0.25,
        filters=(
            _side(360),
            _SUBTITLES,
            _MARK,
            _text(0.01, removes=12),
            _contrast(45.0, removes=3),
            _clear(2.2, removes=10),
        ),
    ),
    TrainingSet(
        name="540p",
        keep=0.1,
        filters=(
            _side(540),
            _text(0.005),
            _moves(1.5),
            _at_most("blocks", "quality.blockiness", 1.3, "shows blocks of its codec", "other", removes=2),
            # Stands in for an aesthetic model, and is refused as a proxy; `models.choice` puts models in its place.
            _at_least("colour", "quality.colourfulness", 12.0, "is almost without colour", "aesthetic", removes=13),
            _clear(1.65),
        ),
        refuse_proxies=True,
    ),
    TrainingSet(
        name="720p",
        keep=0.02,
        filters=(
            _side(720),
            _text(0.0),
            _moves(2.0),
            _contrast(60.0),
            _clear(1.25, removes=4),
            _at_least("source", YIELD, 0.25, "is of a source with few good clips", "source", removes=4),
        ),
        refuse_proxies=True,
    ),
    TrainingSet(
        name="image-256",
        kind="image",
        # Of the scores for marks, only a detector's (`--overlay detector`) says something about a still picture.
        filters=(_side(256), _SUBTITLES, _MARK, _text(0.01), _contrast(30.0), _clear(2.2)),
    ),
    TrainingSet(name="image-512", kind="image", filters=(_side(512), _contrast(60.0), _clear(1.65))),
)

LADDER_PLAN = replace(PLAN, filters=POOL, ladder=Ladder(sets=SETS))
