"""Encoding clips into shards: right frames, right text, resumable, and nothing left out silently."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import write_video
from openhunyuan.curate.clip import Clip, ClipCaption, clip_id
from openhunyuan.latents.encode import encode_clips, frame_numbers, to_pixels
from openhunyuan.latents.shards import INDEX_NAME, ShardDataset

SIZE = VideoSize(5, 32, 32)


class MeanVAE:
    """Stands in for the VAE: latents are frame means, so that a test can see which frames were read."""

    calls = 0

    def encode_latents(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x[:, :1, ::4].mean((3, 4), keepdim=True).expand(-1, 16, -1, 4, 4)


class LengthText:
    """Stands in for the text encoders: one token a word, padded with garbage that must not be stored."""

    def encode(self, prompts: list[str], data_type: str = "video") -> SimpleNamespace:
        words = len(prompts[0].split())
        states = torch.full((1, 12, 8), 99.0)
        states[0, :words] = 1.0
        mask = torch.arange(12)[None] < words
        return SimpleNamespace(states=states, mask=mask, pooled=torch.full((1, 6), float(words)))


def make_clips(folder: Path, lengths: list[int]) -> list[Clip]:
    clips = []
    for i, length in enumerate(lengths):
        levels = (20 + 30 * i + 10 * np.arange(length)).clip(0, 250).astype(np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (length, 32, 48, 3))
        name = clip_id(str(i), 0, length)
        write_video(folder / f"clips/{name}.mp4", frames, 24.0)
        clips.append(
            Clip(
                id=name, source="s.mp4", source_sha256=str(i), start_frame=0, end_frame=length, fps=24.0, height=32,
                width=48, path=f"clips/{name}.mp4",
                captions=(ClipCaption(captioner="truth", text=" ".join(["word"] * (i + 1))),),
            )
        )  # fmt: skip
    return clips


def test_samples_hold_the_clip_and_its_caption(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 7, 9])
    report = encode_clips(clips, tmp_path, tmp_path / "out", MeanVAE(), LengthText(), SIZE, "m", samples_per_shard=2)
    assert (report.samples, report.written, report.left_out) == (3, 2, ())
    for i, sample in enumerate(ShardDataset(tmp_path / "out").samples):
        assert sample.prompt == clips[i].captions[0].text
        assert sample.states.shape == (i + 1, 8)
        assert (sample.states == 1).all()
        assert sample.metadata["clip"] == clips[i].id
        expected = torch.tensor([20.0 + 30 * i, 60.0 + 30 * i]) / 127.5 - 1
        assert torch.allclose(sample.latents[0, :, 0, 0].float(), expected, atol=0.03)


def test_a_second_run_encodes_nothing_and_a_changed_caption_only_its_shard(tmp_path: Path) -> None:
    clips, out, vae = make_clips(tmp_path, [5] * 6), tmp_path / "out", MeanVAE()
    encode_clips(clips, tmp_path, out, vae, LengthText(), SIZE, "m", samples_per_shard=2)
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    again = encode_clips(clips, tmp_path, out, vae, LengthText(), SIZE, "m", samples_per_shard=2)
    assert (again.written, again.skipped, vae.calls) == (0, 3, 6)
    assert files == {p.name: p.read_bytes() for p in out.iterdir()}
    changed = [*clips[:3], clips[3].with_caption(ClipCaption(captioner="better", text="new words")), *clips[4:]]
    report = encode_clips(changed, tmp_path, out, vae, LengthText(), SIZE, "m", samples_per_shard=2)
    assert (report.written, report.skipped, vae.calls) == (1, 2, 8)
    assert ShardDataset(out)[3].prompt == "new words"
    assert encode_clips(clips, tmp_path, out, vae, LengthText(), SIZE, "other", samples_per_shard=2).written == 3


def test_a_structured_caption_travels_with_its_sample(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 2), tmp_path / "out"
    said = ClipCaption(captioner="truth", text="a", fields={"short": "a", "dense": "a b"})
    clips[0] = clips[0].with_caption(said)
    encode_clips(clips, tmp_path, out, MeanVAE(), LengthText(), SIZE, "m")
    assert ShardDataset(out)[0].metadata["caption"] == {"short": "a", "dense": "a b"}
    assert "caption" not in ShardDataset(out)[1].metadata
    other = [clips[0].with_caption(said.model_copy(update={"fields": {"short": "a", "dense": "c"}})), clips[1]]
    assert encode_clips(other, tmp_path, out, MeanVAE(), LengthText(), SIZE, "m").written == 1


def test_a_run_that_died_goes_on_where_it_was(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 4), tmp_path / "out"
    encode_clips(clips, tmp_path, out, MeanVAE(), LengthText(), SIZE, "m", samples_per_shard=2)
    whole = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / INDEX_NAME).unlink()
    shard = out / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    vae = MeanVAE()
    encode_clips(clips, tmp_path, out, vae, LengthText(), SIZE, "m", samples_per_shard=2)
    assert vae.calls == 2
    assert whole == {p.name: p.read_bytes() for p in out.iterdir()}


def test_short_and_dropped_clips_are_left_out_with_a_reason(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 3, 5])
    clips[2] = clips[2].drop("blur", "is blurred")
    report = encode_clips(clips, tmp_path, tmp_path / "out", MeanVAE(), LengthText(), SIZE, "m")
    assert report.samples == 1
    assert report.left_out == ((clips[1].id, "has 3 of the 5 frames needed"),)
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert index["provenance"]["left_out"] == [list(report.left_out[0])]
    with pytest.raises(UserError, match="None of the 1 clips"):
        encode_clips(clips[1:2], tmp_path, tmp_path / "none", MeanVAE(), LengthText(), SIZE, "m")


def test_a_clip_without_a_caption_is_one_sentence(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, [5])[0].model_copy(update={"captions": ()})
    with pytest.raises(UserError, match="no caption"):
        encode_clips([clip], tmp_path, tmp_path / "out", MeanVAE(), LengthText(), SIZE, "m")


def test_frame_numbers_follow_the_wanted_rate(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, [20])[0]
    assert frame_numbers(clip, 5, None) == [0, 1, 2, 3, 4]
    assert frame_numbers(clip, 5, 12.0) == [0, 2, 4, 6, 8]
    assert frame_numbers(clip, 5, 4.0) == [0, 6, 12, 18]


def test_pixels_cover_and_crop_the_centre() -> None:
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 255
    pixels = to_pixels(frames, 32, 32)
    assert pixels.shape == (1, 3, 2, 32, 32)
    assert (pixels == 1.0).all()
    assert to_pixels(frames, 48, 16).shape == (1, 3, 2, 48, 16)
