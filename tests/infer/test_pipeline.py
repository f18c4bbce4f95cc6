import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openhunyuan.base.device import noise
from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.diffusion.schedule import sigmas
from openhunyuan.evals.alignment import measure
from openhunyuan.infer.pipeline import Pipeline

RED = "a large red circle moves right on a black background"
BLUE = "a small blue star moves up on a gray background"


@pytest.fixture(scope="module")
def pipe(micro_model_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(str(micro_model_folder), device="cpu")


def test_shapes_defaults_and_callback(pipe: Pipeline) -> None:
    seen = []
    result = pipe(prompt=RED, seed=1, callback=lambda done, total, latents: seen.append((done, total, latents.dtype)))
    assert seen == [(1, 3, torch.float32), (2, 3, torch.float32), (3, 3, torch.float32)]
    assert [frames.shape for frames in result.frames] == [(5, 32, 32, 3)]
    assert result.frames[0].dtype == np.uint8
    assert result.latents.shape == (1, 16, 2, 4, 4)
    assert result.request.size == VideoSize(5, 32, 32)


def test_a_seed_decides_and_several_videos_are_single_ones(pipe: Pipeline) -> None:
    three = pipe(prompt=RED, seed=3, num_videos=3)
    alone = pipe(prompt=RED, seed=4)
    assert torch.equal(three.latents[1:2], alone.latents)
    assert np.array_equal(three.frames[1], alone.frames[0])
    assert not torch.equal(three.latents[0], three.latents[1])


def test_global_seed_and_threads_do_not_matter(pipe: Pipeline) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = pipe(prompt=RED, seed=1).latents
        torch.manual_seed(6)
        assert torch.equal(pipe(prompt=RED, seed=1).latents, first)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_makes_the_videos_of_its_seeds(pipe: Pipeline, batch_size: int) -> None:
    prompts, seeds = [RED, BLUE, "a star"], [1, 2, 1]
    batch = pipe.generate_batch(prompts, seeds, batch_size=batch_size)
    assert batch.shape == (3, 5, 32, 32, 3)
    for prompt, seed, frames in zip(prompts, seeds, batch, strict=True):
        # Batched matrix products may round otherwise; more than one grey level would be another video.
        difference = np.abs(pipe(prompt=prompt, seed=seed).frames[0].astype(int) - frames)
        assert difference.max() <= 1


def test_guidance_is_what_the_formula_says(pipe: Pipeline) -> None:
    """One step of guided sampling, written out: x1 = x0 + (u + w (c - u)) (0 - 1)."""
    result = pipe(prompt=RED, seed=1, num_inference_steps=1, true_cfg_scale=4.0, negative_prompt="a star")
    start = pipe(prompt=RED, seed=1, num_inference_steps=1, true_cfg_scale=1.0)
    other = pipe(prompt="a star", seed=1, num_inference_steps=1, true_cfg_scale=1.0)
    assert sigmas(1, 3.0).tolist() == [1.0, 0.0]
    # x1 is affine in the velocity, so the guided latents are the same mixture of the unguided ones.
    expected = other.latents + 4.0 * (start.latents - other.latents)
    torch.testing.assert_close(result.latents, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(result.latents, start.latents, atol=1e-3)


def test_the_linear_quadratic_schedule_is_used(pipe: Pipeline) -> None:
    """Two steps, none on the line: the level in the middle is 1 - 2/1000 - (1 - 2/1000)/4 + 1/1000 = 0.7495."""
    seen: list[Tensor] = []
    fields = {"seed": 1, "num_inference_steps": 2, "schedule": "linear-quadratic", "linear_schedule_end": 0}
    result = pipe(prompt=RED, callback=lambda _done, _total, latents: seen.append(latents), **fields)
    start = noise((16, 2, 4, 4), [1])
    # One step of the same first velocity down to 0 gives it; 0.7495 = 1 - 0.001 - 0.998 / 4.
    whole = pipe(prompt=RED, seed=1, num_inference_steps=1).latents - start
    torch.testing.assert_close(seen[0] - start, whole * (1 - 0.7495), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(result.latents, pipe(prompt=RED, seed=1, num_inference_steps=2).latents, atol=1e-4)


def test_long_videos_and_enhancement_reach_the_transformer(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []
    plain = pipe.model.dit.forward

    def spy(*args: Tensor, **fields: object) -> Tensor:
        seen.append(fields)
        return plain(*args, **fields)

    monkeypatch.setattr(pipe.model.dit, "forward", spy)
    small = {"seed": 1, "num_inference_steps": 1, "true_cfg_scale": 1.0}
    base = pipe(prompt=RED, **small).latents
    riflex = pipe(prompt=RED, riflex="on", **small).latents
    enhanced = pipe(prompt=RED, enhance_weight=3.0, true_cfg_scale=1.0, seed=1, num_inference_steps=1).latents
    assert [(call["riflex_k"], call["enhance_weight"]) for call in seen] == [(None, None), (2, None), (None, 3.0)]
    assert not torch.equal(riflex, base)
    assert not torch.equal(enhanced, base)


def test_the_prompt_and_the_negative_prompt_matter(pipe: Pipeline) -> None:
    base = pipe(prompt=RED, seed=1).latents
    assert not torch.equal(pipe(prompt=BLUE, seed=1).latents, base)
    assert not torch.equal(pipe(prompt=RED, seed=1, negative_prompt="a star").latents, base)


def test_one_frame_is_an_image(pipe: Pipeline) -> None:
    assert pipe(prompt=RED, seed=1, num_frames=1).frames[0].shape == (1, 32, 32, 3)


def test_other_sizes(pipe: Pipeline) -> None:
    assert pipe(prompt=RED, seed=1, num_frames=9, height=16, width=48).frames[0].shape == (9, 16, 48, 3)


def test_large_latents_are_decoded_in_tiles(pipe: Pipeline) -> None:
    """A picture larger than a tile: the seams are blended, and the whole has the right size."""
    latents = torch.randn(1, 16, 1, 4, 40, generator=torch.Generator().manual_seed(0))
    frames = pipe.decode(latents)[0]
    assert frames.shape == (1, 32, 320, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": [RED]}, "one text"),
        ({"prompt": RED, "num_frame": 5}, "did you mean num_frames"),
        ({"prompt": RED, "num_frames": 4}, "num_frames is 4"),
    ],
)
def test_bad_calls(pipe: Pipeline, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**fields)


def test_bad_batches(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="one seed a prompt"):
        pipe.generate_batch([RED, BLUE], [1])
    with pytest.raises(UserError, match="no prompt"):
        pipe.generate_batch([], [])
    with pytest.raises(UserError, match="batch_size"):
        pipe.generate_batch([RED], [1], batch_size=0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": "very " * 100 + "red"}, "too long"),
        ({"prompt": RED, "guidance_scale": 6.0}, "guidance_scale is not used"),
        ({"prompt": RED, "negative_prompt": "x", "true_cfg_scale": 1.0}, "negative_prompt is not used"),
    ],
)
def test_what_is_not_used_is_said(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fields: dict, message: str
) -> None:
    monkeypatch.setattr(logging.getLogger("openhunyuan"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="openhunyuan"):
        pipe(seed=1, num_inference_steps=1, num_frames=1, **fields)
    assert message in caplog.text


def test_the_distilled_model_asks_its_transformer_once_a_step() -> None:
    pipe = Pipeline.from_pretrained("tiny-fast", device="cpu")
    asked: list[int] = []
    pipe.model.dit.register_forward_hook(lambda *_: asked.append(1))
    frames = pipe(prompt=RED, seed=1).frames[0]
    assert len(asked) == 8
    seen = measure(frames)
    assert (seen.color, seen.shape, seen.motion) == ("red", "circle", "right")
