"""The tags of a caption: where the clip comes from, and how it was measured to look (report section 3.2).

They are words for numbers of `curate`, put into every captioner's captions; no model is asked, and a model's own are
dropped. The bands are a start: those of the default thresholds where there are any, else set by eye. A band whose word
is empty says nothing, and so does a score that was not measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from openhunyuan.curate.clip import Clip


@dataclass(frozen=True)
class Bands:
    """Words for the values of a score, each up to its limit, exclusive; of the scores named, the first there is."""

    scores: tuple[str, ...]
    words: tuple[tuple[float, str], ...]

    def word(self, scores: Mapping[str, float]) -> str:
        """The word for a clip's scores, or ""."""
        value = next((scores[name] for name in self.scores if name in scores), None)
        return "" if value is None else next((word for limit, word in self.words if value < limit), "")


LIGHT = Bands(("quality.brightness",), ((50, "dark"), (90, "dim"), (170, ""), (inf, "bright")))
CONTRAST = Bands(("quality.contrast",), ((60, "low contrast"), (180, ""), (inf, "high contrast")))
COLOUR = Bands(("quality.colourfulness",), ((8, "colourless"), (60, ""), (inf, "colourful")))
SHARPNESS = Bands(("blur.width",), ((1.25, "sharp"), (1.65, ""), (2.2, "slightly blurred"), (inf, "blurred")))
EDGES = Bands(("clarity.edge_width",), ((1.8, "sharp"), (2.4, ""), (3.2, "slightly blurred"), (inf, "blurred")))
"""As `SHARPNESS`, for the heuristic, which measures wider."""
BLOCKS = Bands(("quality.blockiness",), ((1.3, ""), (inf, "compression blocks")))
_MOTION = Bands(
    ("motion.speed", "raft.speed"),
    ((1, "almost no motion"), (4, "little motion"), (15, "moderate motion"), (inf, "fast motion")),
)


SHOT = Bands(
    ("shot_scale.head", "heads.head"),
    ((0.15, ""), (0.24, "medium full shot"), (0.42, "medium shot"), (0.63, "medium close-up"), (inf, "close-up")),
)
"""Shot scales by the height of the head over the picture's. Film names them by where the picture cuts a person, and a
person is about seven and a half heads: down to the thighs or knees, the waist, the chest, the shoulders. Below that the
detector misses too many for anything to be said, and a face that is cut is not found: no full shot, no wide shot and no
extreme close-up."""


def shot_word(scores: Mapping[str, float], lines: int) -> str:
    """The shot scale, or "". lines: height of the picture that the caption is about, in the source's lines. A head that
    is not within one band four times of five says nothing."""
    ends = [{n: scores[n + end] / lines for n in SHOT.scores if n + end in scores} for end in ("_low", "_high")]
    low, high = map(SHOT.word, ends)
    return low if low == high else ""


def motion_word(scores: Mapping[str, float]) -> str:
    """How much moves, or "". Only of speeds in per cent of the diagonal a second: the other methods of `motion` measure
    pixels or the codec's vectors, and have no part of the camera."""
    return _MOTION.word(
        {f"{m}.speed": scores[f"{m}.speed"] for m in ("motion", "raft") if f"{m}.camera_speed" in scores}
    )


def caption_tags(clip: Clip, scores: Mapping[str, float]) -> tuple[str, ...]:
    """Source tags, then quality tags. Of what the container says only the number of lines is told: the codec, the bits
    and the light's encoding do not show in the clip's file. The shape is the file's, which may have been cropped."""
    shape = "landscape" if clip.width > clip.height else "portrait" if clip.width < clip.height else "square"
    lines = [tag for tag in clip.tags if re.fullmatch(r"(below )?\d+p", tag)]
    quality = [bands.word(scores) for bands in (SHARPNESS, LIGHT, CONTRAST, COLOUR, BLOCKS)]
    if "blur.width" not in scores:
        quality.insert(0, EDGES.word(scores))
    return (shape, *lines, *(word for word in (*quality, motion_word(scores)) if word))
