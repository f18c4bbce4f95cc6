"""What the tiny-text recipe shows its models: the training split only, in the promised mix."""

from __future__ import annotations

import numpy as np

from openhunyuan.recipes.tiny_text import TinyTextConfig, world_data
from openhunyuan.tiny.vocabulary import is_heldout
from openhunyuan.tiny.world import parse_prompt


def test_prompts_are_mixed_and_never_held_out() -> None:
    rng = np.random.default_rng(0)
    data = world_data(TinyTextConfig(photo_prob=0.0))
    samples = [data.sample_prompts(rng) for _ in range(400)]
    canonical = [scene for prompt, _ in samples if (scene := parse_prompt(prompt)) is not None]
    assert 0.5 < len(canonical) / len(samples) < 0.7
    answers = [scene for _, answer in samples if (scene := parse_prompt(answer)) is not None]
    for scene in canonical + answers:
        assert not is_heldout(scene.shape, scene.color, scene.motion)
    assert all(prompt != answer for prompt, answer in samples)


def test_frames_and_truth_belong_to_their_prompt() -> None:
    rng = np.random.default_rng(1)
    data = world_data(TinyTextConfig())
    pairs = data.sample_pairs(rng, 61)
    assert len(pairs) == 61
    for frame, texts in pairs:
        assert (frame.shape, frame.dtype) == ((64, 64, 3), np.uint8)
        assert len(texts) == 2
    scenes = [scene for _, texts in pairs for text in texts if (scene := parse_prompt(text)) is not None]
    assert len(scenes) > 30
    assert not any(is_heldout(scene.shape, scene.color, scene.motion) for scene in scenes)
    for heldout in (False, True):
        scene = data.labelled(rng, heldout)
        parsed = parse_prompt(scene.prompt)
        assert parsed is not None
        assert all(getattr(parsed, name) == value for name, value in scene.labels.items())
        assert is_heldout(parsed.shape, parsed.color, parsed.motion) == heldout
        assert set(scene.visible) <= set(scene.labels)
