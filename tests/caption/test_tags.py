"""Tags of a caption from a clip's source and its scores, and what they are in a training text."""

import numpy as np
import pytest

from openhunyuan.caption.schema import Caption, assemble
from openhunyuan.caption.tags import caption_tags
from openhunyuan.curate.clip import Clip

TAGS = ("landscape", "720p", "h264", "variable frame rate", "10 bit", "hdr")


def clip(height: int = 64, width: int = 96, tags: tuple[str, ...] = TAGS) -> Clip:
    return Clip(
        id="x", source="x", source_sha256="x", start_frame=0, end_frame=1, fps=24, height=height, width=width, tags=tags
    )


def test_of_the_source_the_shape_and_the_lines_are_told_and_no_codec() -> None:
    assert caption_tags(clip(), {}) == ("landscape", "720p")
    assert caption_tags(clip(tags=("square", "below 144p", "av1")), {}) == ("landscape", "below 144p")
    assert caption_tags(clip(96, 64), {}) == ("portrait", "720p")  # the source is wider than the crop


@pytest.mark.parametrize(
    "scores, words",
    [
        ({"blur.width": 1.0}, ("sharp",)),
        ({"blur.width": 1.4}, ()),
        ({"blur.width": 2.0, "clarity.edge_width": 9.0}, ("slightly blurred",)),
        ({"clarity.edge_width": 2.8}, ("slightly blurred",)),
        ({"blur.width": 9.0}, ("blurred",)),
        ({"quality.brightness": 255.0, "quality.contrast": 255.0}, ("bright", "high contrast")),
        ({"quality.brightness": 20.0, "quality.colourfulness": 3.0}, ("dark", "colourless")),
        ({"quality.blockiness": 1.5}, ("compression blocks",)),
        ({"quality.blockiness": 1.0, "niqe.distance": 30.0}, ()),
        ({"motion.speed": 20.0, "motion.camera_speed": 0.0}, ("fast motion",)),
        ({"raft.speed": 0.2, "raft.camera_speed": 0.0}, ("almost no motion",)),
        ({"motion.speed": 20.0}, ()),  # by a method that measures something else
    ],
)
def test_scores_become_words_by_bands(scores: dict[str, float], words: tuple[str, ...]) -> None:
    assert caption_tags(clip(), scores)[2:] == words


def test_a_training_text_names_the_tags_in_one_sentence_or_not_at_all() -> None:
    tags = caption_tags(clip(), {"blur.width": 1.0, "motion.speed": 20.0, "motion.camera_speed": 0.0})
    caption = Caption(short="A fox runs.", dense="A red fox runs.", tags=tags)
    told = "Landscape, 720p, sharp, fast motion."
    texts = [assemble(caption, np.random.default_rng(seed)) for seed in range(40)]
    assert {told in text for text in texts} == {True, False}
    assert all("sharp" not in text.replace(told, "") for text in texts)
