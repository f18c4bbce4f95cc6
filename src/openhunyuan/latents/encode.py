"""Clips with captions in, latent shards out: the VAE and the text encoders run once, training reads the result.

Which clip goes to which shard is decided before anything is encoded, and each shard carries a key made of its clips,
their captions, the size and the model. A run that is started again encodes only the shards that are missing, cut off
or made from something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import iter_video
from openhunyuan.curate.clip import Clip
from openhunyuan.latents.captions import CAPTION, PromptEncoder
from openhunyuan.latents.shards import LatentSample, read_shard_header, shard_name, write_index, write_shard


class LatentEncoder(Protocol):
    """The VAE as this room sees it."""

    def encode_latents(self, video: Tensor, /) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] -> scaled latents [B, C, T, h, w]."""
        ...


@dataclass(frozen=True)
class EncodeReport:
    """What a run did: samples in the dataset, shards written now and found complete, and (clip, reason) left out."""

    samples: int
    written: int
    skipped: int
    left_out: tuple[tuple[str, str], ...]


def caption_text(clip: Clip) -> str:
    """The text a clip is trained on: its newest caption. Raises UserError when it has none."""
    if not clip.captions:
        raise UserError(f"Clip {clip.id} has no caption; caption the clips before encoding them.")
    return clip.captions[-1].text


def encode_clips(
    clips: Sequence[Clip],
    folder: Path | str,
    output: Path | str,
    vae: LatentEncoder,
    text: PromptEncoder,
    size: VideoSize,
    model_name: str,
    fps: float | None = None,
    samples_per_shard: int = 256,
    prompt_of: Callable[[Clip], str] = caption_text,
    device: torch.device | str = "cpu",
    on_sample: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode the kept clips into a latent dataset.

    folder: where the clips' paths start. size: frames, height and width of every sample; clips are resized to cover
    and cropped at the centre, and read from their first frame, at `fps` frames a second (nearest frame; None: every
    frame as it is). model_name: identifies VAE and text encoders; part of the key of every shard.
    on_sample: called with (samples done, samples in all).
    Clips that are too short are left out and named in the report and in the index.
    """
    folder, output = Path(folder), Path(output)
    left_out: list[tuple[str, str]] = []
    usable: list[tuple[Clip, str]] = []
    for clip in clips:
        if clip.dropped:
            continue
        available = len(frame_numbers(clip, size.num_frames, fps))
        if clip.path is None:
            left_out.append((clip.id, "has no file"))
        elif available < size.num_frames:
            left_out.append((clip.id, f"has {available} of the {size.num_frames} frames needed"))
        else:
            usable.append((clip, prompt_of(clip)))
    if not usable:
        reason = f"; the first one {left_out[0][1]}" if left_out else ""
        raise UserError(f"None of the {len(clips)} clips can be encoded at {size.num_frames} frames{reason}.")

    output.mkdir(parents=True, exist_ok=True)
    provenance = {"model": model_name, "size": asdict(size), "fps": fps}
    done = written = 0
    names: list[str] = []
    for number, first in enumerate(range(0, len(usable), samples_per_shard)):
        group = usable[first : first + samples_per_shard]
        name = shard_name(number)
        names.append(name)
        key = shard_key(group, provenance)
        header = read_shard_header(output / name)
        if header is None or header["key"] != key:
            samples = []
            for clip, prompt in group:
                samples.append(_encode_one(clip, prompt, folder, vae, text, size, fps, device))
                done += 1
                if on_sample:
                    on_sample(done, len(usable))
            write_shard(output / name, samples, key)
            written += 1
        else:
            done += len(group)
            if on_sample:
                on_sample(done, len(usable))
    for stale in output.glob("shard-*.safetensors"):
        if stale.name not in names:
            stale.unlink()
    write_index(output, names, {**provenance, "left_out": [list(item) for item in left_out]})
    return EncodeReport(len(usable), written, len(names) - written, tuple(left_out))


def shard_key(group: Sequence[tuple[Clip, str]], provenance: dict[str, Any]) -> str:
    """Hash of everything a shard is made from: its clips and captions in order, the size, the rate, the model."""
    made_from = [[clip.id, prompt, clip.captions[-1].fields if clip.captions else {}] for clip, prompt in group]
    content = json.dumps([made_from, provenance], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def frame_numbers(clip: Clip, num_frames: int, fps: float | None) -> list[int]:
    """Frame numbers of the clip's file that make its sample: at most `num_frames`, fewer when the clip is too short."""
    step = 1.0 if fps is None else clip.fps / fps
    numbers = [int(i * step + 0.5) for i in range(num_frames)]
    return [n for n in numbers if n < clip.num_frames]


def to_pixels(frames: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 [T, H, W, 3] -> float32 [1, 3, T, height, width] in [-1, 1]: resized to cover (bilinear, antialiased),
    centre crop."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    scale = max(height / x.shape[2], width / x.shape[3])
    covered = (max(height, round(x.shape[2] * scale)), max(width, round(x.shape[3] * scale)))
    if covered != tuple(x.shape[2:]):
        x = torch.nn.functional.interpolate(x, covered, mode="bilinear", antialias=True, align_corners=False)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    x = x[:, :, top : top + height, left : left + width]
    return (x / 127.5 - 1.0).clamp(-1.0, 1.0).transpose(0, 1)[None].contiguous()


@torch.no_grad()
def _encode_one(
    clip: Clip,
    prompt: str,
    folder: Path,
    vae: LatentEncoder,
    text: PromptEncoder,
    size: VideoSize,
    fps: float | None,
    device: torch.device | str,
) -> LatentSample:
    path = folder / str(clip.path)
    frames = np.stack(list(_take(iter_video(path), frame_numbers(clip, size.num_frames, fps))))
    if len(frames) != size.num_frames:
        raise UserError(f"{path} holds fewer frames than its record says; cut the clips again.")
    pixels = to_pixels(frames, size.height, size.width).to(device)
    latents = vae.encode_latents(pixels)[0]
    features = text.encode([prompt], data_type="image" if size.num_frames == 1 else "video")
    metadata = {"clip": clip.id, "source": clip.source, "camera": clip.camera, "fps": fps or clip.fps}
    if clip.captions and clip.captions[-1].fields:
        metadata[CAPTION] = clip.captions[-1].fields  # other texts can be assembled from it when batches are made
    return LatentSample(latents, features.states[0][features.mask[0]], features.pooled[0], prompt, metadata)


def _take(frames: Iterator[np.ndarray], numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames with these ascending numbers (a number may repeat), decoding no further than the last one."""
    waiting = list(numbers)
    for number, frame in enumerate(frames):
        while waiting and waiting[0] == number:
            waiting.pop(0)
            yield frame
        if not waiting:
            return
