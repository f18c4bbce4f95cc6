"""The captioner that says only what was measured: colours, light, contrast, how much moves, how large a face is.

It names no object, no place and no action, because nothing here looked for any. Its captions are poor and true. The
scores come from the measures of `curate`; what was not measured is left out. The camera's move and the tags are put in
as into every captioner's captions.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import ClassVar

from openhunyuan.base.errors import UserError
from openhunyuan.caption.captioner import Captioned, Captioner, Item
from openhunyuan.caption.schema import Caption
from openhunyuan.caption.tags import COLOUR, CONTRAST, LIGHT, motion_word, shot_word

_HUES = ((15, "red"), (42, "orange"), (70, "yellow"), (165, "green"), (200, "cyan"), (255, "blue"), (315, "purple"))


class Measured(Captioner):
    """Captions from scores alone; needs no model and no frame."""

    name: ClassVar[str] = "measured"
    version: ClassVar[int] = 4

    def caption(self, item: Item) -> Captioned:
        caption = measured_caption(item.scores, item.palette, item.clip.kind)
        lines = item.clip.crop[3] - item.clip.crop[1] if item.clip.crop else item.clip.height
        caption = caption.model_copy(update={"shot_type": shot_word(item.scores, lines)})
        return Captioned(caption=caption, text=caption.dense)


def measured_caption(scores: Mapping[str, float], palette: Sequence[float], what: str = "video") -> Caption:
    """A caption from the scores of a clip and its palette (red, green, blue, share, and so on); what: video or image.

    Raises UserError when nothing that could be said was measured.
    """
    colours = colour_names(palette)
    light, contrast, colourful = (bands.word(scores) for bands in (LIGHT, CONTRAST, COLOUR))
    moving = motion_word(scores)
    if not colours and not light and not moving:
        raise UserError("nothing was measured that a caption could say")
    kind = " ".join(word for word in (light, colourful) if word)
    short = f"{_article(kind or what)} {kind + ' ' if kind else ''}{what}"
    if colours:
        short += f" in {_and(colours)}"
    dense = short + (f", with {moving}" if moving else "") + (f" and {contrast}" if contrast and moving else "")
    return Caption(
        short=short,
        dense=dense,
        lighting=f"{light} picture" if light else "",
        atmosphere="",
    )


def colour_names(palette: Sequence[float], most: int = 3) -> list[str]:
    """Plain names of a palette's colours, commonest first, each once."""
    names: dict[str, float] = {}
    for i in range(0, len(palette), 4):
        name = colour_name(*palette[i : i + 3])
        names[name] = names.get(name, 0.0) + palette[i + 3]
    return sorted(names, key=lambda name: -names[name])[:most]


def colour_name(red: float, green: float, blue: float) -> str:
    """A basic colour term for a colour, levels 0..255."""
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    if light < 0.12:
        return "black"
    if light > 0.92:
        return "white"
    # Near black and white, HLS calls traces of colour saturated; chroma does not.
    if (max(red, green, blue) - min(red, green, blue)) < 28 or saturation < 0.12:
        return "dark gray" if light < 0.35 else "light gray" if light > 0.7 else "gray"
    name = next((word for limit, word in _HUES if hue * 360 < limit), "pink" if light > 0.6 else "red")
    if name == "orange" and light < 0.4:
        name = "brown"
    return f"dark {name}" if light < 0.28 and name != "brown" else name


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
