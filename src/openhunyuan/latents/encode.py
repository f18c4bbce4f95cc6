"""Clips with captions in, a latent dataset out: the VAE and the text encoders run once, training reads the result.

What goes into which file is decided before anything is encoded: samples of one bucket in the order of the clips. Every
file is named by what its samples are made of, and samples that were ever encoded in the folder are copied, so a run
that is started again encodes only what is new: another caption costs a text, another clip its own latents. Several
processes, on one machine or on many, share the files between them; the index is written by whoever finds them all.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import iter_video
from openhunyuan.curate.clip import Clip, ClipCaption
from openhunyuan.latents import store
from openhunyuan.latents.buckets import choose_bucket, describe
from openhunyuan.latents.captions import CAPTION, PromptEncoder

PREPROCESSING = 1
"""Raised when the same clip would give other pixels than before."""
TEXTS_AT_ONCE = 16
FILE_BYTES = 2**29
"""Moments in one file, at most; a file is put together in memory. Counted with the released VAE's 16 channels."""


class Distribution(Protocol):
    """What a VAE says of a video: [B, C, T, h, w] each, in the VAE's own units."""

    @property
    def mean(self) -> Tensor: ...
    @property
    def logvar(self) -> Tensor: ...


class LatentEncoder(Protocol):
    """The VAE as this room sees it."""

    @property
    def config(self) -> Any:
        """Has `scaling_factor`."""
        ...

    def encode(self, video: Tensor, tiling: Any = None, /) -> Distribution:
        """Pixels [B, 3, F, H, W] in [-1, 1] -> the distribution of their latents."""
        ...


class Networks(NamedTuple):
    """The networks of one process, and where the VAE's weights lie."""

    vae: LatentEncoder
    text: PromptEncoder
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Encoders:
    """What encodes, and what identifies it.

    Attributes:
        load: gives the networks; called once in every process that encodes, with the process's number (0, 1, ...), by
            which it may choose a device. It travels to other processes, so with `workers` it must be picklable.
        vae: identifies the VAE's weights.
        text: identifies the text encoders' weights.
        model: identifies both; what `train --data` compares.
        tiling: of the VAE, for videos too large to encode at once.
    """

    load: Callable[[int], Networks]
    vae: str
    text: str
    model: str
    tiling: Any = None

    @classmethod
    def of(cls, vae: LatentEncoder, text: PromptEncoder, name: str, device: torch.device | str = "cpu") -> Encoders:
        """Networks that are at hand, in this process."""
        return cls(lambda _: Networks(vae, text, device), name, name, name)


@dataclass(frozen=True)
class EncodeReport:
    """What a run did: samples in the dataset, shards written now and found complete, and (clip, reason) left out.

    encoded: samples that went through the VAE now. missing: shards that other processes have still to write.
    """

    samples: int
    written: int
    skipped: int
    left_out: tuple[tuple[str, str], ...]
    encoded: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Sample:
    """One sample to be: a span of a clip, its caption, its size."""

    clip: Clip
    caption: ClipCaption
    first: int
    size: VideoSize

    @property
    def name(self) -> str:
        """The clip's id, and the frame with which it begins where that is not the first one."""
        return f"{self.clip.id}@{self.first}" if self.first else self.clip.id


def encode_clips(
    clips: Sequence[Clip],
    folder: Path | str,
    output: Path | str,
    encoders: Encoders,
    sizes: VideoSize | Sequence[VideoSize],
    fps: float | None = None,
    samples_per_shard: int = 256,
    captioner: str | None = None,
    workers: int = 0,
    part: tuple[int, int] = (1, 1),
    on_sample: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode the kept clips into a latent dataset.

    folder: where the clips' paths start. sizes: the buckets; every clip goes to one (`buckets.choose_bucket`), is
    resized to cover it and cropped at the centre, and read from its first frame (or that of each captioned window), at
    `fps` frames a second (nearest frame; None: every frame as it is). captioner: whose captions; None: the newest.
    workers: processes that encode; 0 works here. part: (n, of): only every of-th shard, beginning with the n-th, for
    several runs over one folder. on_sample: called with (samples done, samples in all).
    Clips that are too short are left out and named in the report and in the index.

    Raises:
        UserError: no clip can be encoded; captions of two versions of one captioner; a clip file that is broken.
    """
    folder, output = Path(folder), Path(output)
    sizes = (sizes,) if isinstance(sizes, VideoSize) else tuple(sizes)
    samples, left_out = plan_samples(clips, sizes, fps, captioner)
    if not samples:
        reason = f"; the first one {left_out[0][1]}" if left_out else ""
        shortest = min(size.num_frames for size in sizes)
        raise UserError(f"None of the {len(clips)} clips can be encoded at {shortest} frames{reason}.")
    check_one_version(samples)
    made = made_with(encoders, fps)
    shards = _shards(samples, made, samples_per_shard)
    output.mkdir(parents=True, exist_ok=True)

    number, of = part
    lacking = [shard for shard in shards if not shard.is_complete(output)]
    jobs = [shard for i, shard in enumerate(shards) if i % of == number - 1 and not shard.is_complete(output)]
    done = len(samples) - sum(len(shard.samples) for shard in lacking)
    encoded = 0
    if on_sample:
        on_sample(done, len(samples))
    for count, new in _run(jobs, _Job(folder, output, encoders, made, fps), workers):
        done, encoded = done + count, encoded + new
        if on_sample:
            on_sample(done, len(samples))
    missing = [shard for shard in lacking if not shard.is_complete(output)]
    if not missing:
        captions = Counter(sample.caption.signature for sample in samples)
        made |= {"captions": sorted(captions), "buckets": sorted(str(size) for size in sizes)}
        files = [(shard.bucket, len(shard.samples), shard.files()) for shard in shards]
        index = make_index(files, made, dict(captions), {"model": encoders.model, "fps": fps})
        index["left_out"] = [list(item) for item in left_out]
        store.write_dataset_index(output, index)
    return EncodeReport(
        len(samples), len(jobs), len(shards) - len(lacking), tuple(left_out), encoded, missing=len(missing)
    )


def plan_samples(
    clips: Sequence[Clip], sizes: Sequence[VideoSize], fps: float | None, captioner: str | None = None
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """(samples in the order of the clips, (clip, or CLIP@FRAME for a window, and reason) of those left out). Dropped
    clips are neither."""
    samples: list[Sample] = []
    left_out: list[tuple[str, str]] = []
    for clip in clips:
        if clip.dropped:
            continue
        if clip.path is None:
            left_out.append((clip.id, "has no file"))
            continue
        captions = clip.captions_of(captioner)
        if not captions:
            raise UserError(f"Clip {clip.id} has no caption; caption the clips before encoding them.")
        for caption in captions:
            first, last = caption.window or (0, clip.num_frames)
            available = frames_at(clip, fps, first, min(last, clip.num_frames))
            size = choose_bucket(sizes, available, clip.height, clip.width)
            if size:
                samples.append(Sample(clip, caption, first, size))
            else:
                needed = min(size.num_frames for size in sizes)
                name = f"{clip.id}@{first}" if first else clip.id
                left_out.append((name, f"has {available} of the {needed} frames needed"))
    return samples, left_out


def check_one_version(samples: Sequence[Sample]) -> None:
    """Raise UserError when captions of two versions of one captioner would be mixed."""
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        versions = found.setdefault(sample.caption.captioner, {})
        versions[sample.caption.version] = versions.get(sample.caption.version, 0) + 1
    for name, versions in found.items():
        if len(versions) > 1:
            (a, n), (b, m) = sorted(versions.items(), key=lambda item: -item[1])[:2]
            raise UserError(
                f"The captions of {n} samples are of version {a or 'unknown'} of {name}, those of {m} of version "
                f"{b or 'unknown'}; caption the rest with one setting, or name one: --captioner {name}@{(a or b)[:8]}."
            )


def made_with(encoders: Encoders, fps: float | None) -> dict[str, Any]:
    """What a dataset's fingerprint is made of, but for the captions."""
    preprocessing = {
        "version": PREPROCESSING,
        "resize": "cover, bilinear, antialiased; centre crop",
        "fps": fps,
        "tiling": repr(encoders.tiling) if encoders.tiling else None,
    }
    return {"vae": encoders.vae, "text_encoders": encoders.text, "preprocessing": preprocessing}


@dataclass(frozen=True)
class Shard:
    """The samples of one pair of files, and the keys of both."""

    bucket: VideoSize
    samples: tuple[Sample, ...]
    moment_keys: tuple[str, ...]
    text_keys: tuple[str, ...]

    def file(self, kind: str) -> str:
        return store.file_name(str(self.bucket), kind, self.key(kind))

    def key(self, kind: str) -> str:
        return store.key_of(list(self.moment_keys if kind == store.MOMENTS else self.text_keys))

    def files(self) -> dict[str, dict[str, str]]:
        return {kind: {"file": self.file(kind), "key": self.key(kind)} for kind in (store.MOMENTS, store.TEXTS)}

    def has(self, output: Path, kind: str) -> bool:
        header = store.read_header(output / self.file(kind))
        return header is not None and header["key"] == self.key(kind)

    def is_complete(self, output: Path) -> bool:
        return self.has(output, store.MOMENTS) and self.has(output, store.TEXTS)


def _shards(samples: Sequence[Sample], made: dict[str, Any], samples_per_shard: int) -> list[Shard]:
    buckets: dict[VideoSize, list[Sample]] = {}
    for sample in samples:
        buckets.setdefault(sample.size, []).append(sample)
    return [
        Shard(
            bucket,
            tuple(group),
            tuple(_moments_key(sample, made) for sample in group),
            tuple(_text_key(sample, made) for sample in group),
        )
        for bucket, held in sorted(buckets.items(), key=lambda item: str(item[0]))
        for group in _groups(held, bucket, samples_per_shard)
    ]


def _groups(held: list[Sample], bucket: VideoSize, most: int) -> list[list[Sample]]:
    latent = bucket.latent
    one = 2 * 2 * 16 * latent.frames * latent.height * latent.width
    count = max(1, min(most, FILE_BYTES // one))
    return [held[i : i + count] for i in range(0, len(held), count)]


def _moments_key(sample: Sample, made: dict[str, Any]) -> str:
    content = sample.clip.sha256 or sample.clip.id
    return store.key_of([content, sample.name, str(sample.size), made["vae"], made["preprocessing"]])


def _text_key(sample: Sample, made: dict[str, Any]) -> str:
    caption = sample.caption
    said = [caption.text, caption.fields, caption.signature, sample.clip.camera]
    return store.key_of([sample.name, said, sample.size.is_image, made["text_encoders"]])


def make_index(
    files: Sequence[tuple[VideoSize, int, dict[str, dict[str, str]]]],
    made: dict[str, Any],
    captions: dict[str, int],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The index of a dataset.

    Args:
        files: (bucket, samples, {"moments": {"file", "key"}, "texts": {"file", "key"}}) of every shard.
        made: what all was made with; the dataset's fingerprint is its hash.
        captions: captioner and version → how many samples it captioned.
        provenance: what else is worth knowing; `fps` gives the buckets' seconds.
    """
    buckets: dict[str, dict[str, Any]] = {}
    for size, count, shard in files:
        bucket = buckets.setdefault(
            str(size), {"bucket": str(size), **describe(size, provenance.get("fps")), "samples": 0, "shards": []}
        )
        bucket["samples"] += count
        bucket["shards"].append({"samples": count, **shard})
    return {
        "format": store.FORMAT,
        "fingerprint": store.key_of(made)[:12],
        "samples": sum(count for _, count, _ in files),
        "buckets": list(buckets.values()),
        "made": made,
        "captions": captions,
        "provenance": provenance,
    }


@dataclass(frozen=True)
class _Job:
    """What every shard of a run has in common."""

    folder: Path
    output: Path
    encoders: Encoders
    made: dict[str, Any]
    fps: float | None


_LOADED: dict[str, Any] = {}
"""In a worker: the networks, loaded once."""


def _run(jobs: Sequence[Shard], job: _Job, workers: int) -> Iterator[tuple[int, int]]:
    """Write shards, here or in processes; yields (samples, samples that were encoded) as they are done."""
    if not jobs:
        return
    known = {kind: store.find_samples(job.output, kind) for kind in (store.MOMENTS, store.TEXTS)}
    if workers < 1:
        loaded = lazily(lambda: job.encoders.load(0))
        for shard in jobs:
            yield _write(shard, job, loaded, _known(shard, known))
        return
    context = multiprocessing.get_context("spawn")
    numbers: Any = context.Queue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (job, numbers)) as pool:
        try:
            for future in as_completed([pool.submit(_write_there, shard, _known(shard, known)) for shard in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process that encoded died, out of memory perhaps; what it finished is kept. "
                "Start again, with fewer workers or smaller samples."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _known(shard: Shard, known: dict[str, dict[str, store.Place]]) -> dict[str, store.Place]:
    """Of all samples that were ever encoded, those of a shard."""
    found = {key: known[store.MOMENTS].get(key) for key in shard.moment_keys}
    found |= {key: known[store.TEXTS].get(key) for key in shard.text_keys}
    return {key: place for key, place in found.items() if place is not None}


def _begin(job: _Job, numbers: Any) -> None:
    torch.set_num_threads(1)
    number = numbers.get()
    _LOADED.update(job=job, networks=lazily(lambda: job.encoders.load(number)))


def _write_there(shard: Shard, known: dict[str, store.Place]) -> tuple[int, int]:
    return _write(shard, _LOADED["job"], _LOADED["networks"], known)


def lazily(load: Callable[[], Any]) -> Callable[[], Any]:
    """The same, called once; networks are not loaded for shards that are copied."""
    held: list[Any] = []

    def get() -> Any:
        if not held:
            held.append(load())
        return held[0]

    return get


def _write(shard: Shard, job: _Job, networks: Callable[[], Networks], known: dict[str, store.Place]) -> tuple[int, int]:
    encoded = 0
    if not shard.has(job.output, store.MOMENTS):
        encoded = _write_moments(shard, job, networks, known)
    if not shard.has(job.output, store.TEXTS):
        _write_texts(shard, job, networks, known)
    return len(shard.samples), encoded


def _write_moments(shard: Shard, job: _Job, networks: Callable[[], Networks], known: dict[str, store.Place]) -> int:
    tensors: dict[str, Tensor] = {}
    readers = _Readers()
    encoded = 0
    for i, (sample, key) in enumerate(zip(shard.samples, shard.moment_keys, strict=True)):
        place = known.get(key)
        if place is not None:
            for name in ("mean", "logvar"):
                tensors[f"{name}/{i:06d}"] = readers.tensor(place, name)
            continue
        mean, logvar = _moments(sample, job, networks())
        tensors[f"mean/{i:06d}"], tensors[f"logvar/{i:06d}"] = mean.half(), logvar.half()
        encoded += 1
    about = [
        {
            "sample": sample.name,
            "clip": sample.clip.id,
            "source": sample.clip.source,
            "fps": job.fps or sample.clip.fps,
            "first_frame": sample.first,
        }
        for sample in shard.samples
    ]
    made = {what: job.made[what] for what in ("vae", "preprocessing")}
    path = job.output / shard.file(store.MOMENTS)
    store.write_file(path, store.MOMENTS, tensors, made, shard.moment_keys, about)
    return encoded


def _write_texts(shard: Shard, job: _Job, networks: Callable[[], Networks], known: dict[str, store.Place]) -> None:
    tensors: dict[str, Tensor] = {}
    readers = _Readers()
    new = []
    for i, key in enumerate(shard.text_keys):
        if key in known:
            for name in ("states", "pooled"):
                tensors[f"{name}/{i:06d}"] = readers.tensor(known[key], name)
        else:
            new.append(i)
    kind = "image" if shard.bucket.is_image else "video"
    for start in range(0, len(new), TEXTS_AT_ONCE):
        rows = new[start : start + TEXTS_AT_ONCE]
        encode_texts(networks().text, [shard.samples[i].caption.text for i in rows], rows, kind, tensors)
    about = []
    for sample in shard.samples:
        metadata: dict[str, Any] = {"camera": sample.clip.camera, "captioner": sample.caption.signature}
        if sample.caption.fields:
            metadata[CAPTION] = sample.caption.fields  # other texts can be assembled from it when batches are made
        about.append(
            {"sample": sample.name, "clip": sample.clip.id, "prompt": sample.caption.text, "metadata": metadata}
        )
    made = {"text_encoders": job.made["text_encoders"]}
    store.write_file(job.output / shard.file(store.TEXTS), store.TEXTS, tensors, made, shard.text_keys, about)


@torch.no_grad()
def encode_texts(
    text: PromptEncoder, prompts: Sequence[str], rows: Sequence[int], kind: str, tensors: dict[str, Tensor]
) -> None:
    """Put the states and pooled vectors of prompts into a file's tensors, under their row numbers."""
    features = text.encode(list(prompts), data_type=kind)
    for n, row in enumerate(rows):
        tensors[f"states/{row:06d}"] = features.states[n][features.mask[n]]
        tensors[f"pooled/{row:06d}"] = features.pooled[n]


class _Readers:
    """Files that samples are copied from, each opened once."""

    def __init__(self) -> None:
        self._open: dict[Path, store.Reader] = {}

    def tensor(self, place: store.Place, name: str) -> Tensor:
        if place.path not in self._open:
            self._open[place.path] = store.Reader(place.path)
        return self._open[place.path].tensor(name, place.number)


def frames_at(clip: Clip, fps: float | None, first: int, last: int) -> int:
    """How many frames the frames [first, last) of a clip's file give at a rate."""
    step = 1.0 if fps is None else clip.fps / fps
    # The largest n whose last frame, number floor((n - 1) * step + 1/2) after the first, is still before the end.
    return max(0, math.ceil((last - first - 0.5) / step))


def frame_numbers(clip: Clip, num_frames: int, fps: float | None, first: int = 0) -> list[int]:
    """Frame numbers of the clip's file that make its sample: at most `num_frames`, fewer when the clip is too short."""
    step = 1.0 if fps is None else clip.fps / fps
    numbers = [first + int(i * step + 0.5) for i in range(num_frames)]
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
def _moments(sample: Sample, job: _Job, networks: Networks) -> tuple[Tensor, Tensor]:
    """Mean and log variance [C, T, h, w] of the scaled latents."""
    path, size = job.folder / str(sample.clip.path), sample.size
    frames = list(_take(iter_video(path), frame_numbers(sample.clip, size.num_frames, job.fps, sample.first)))
    if len(frames) != size.num_frames:
        raise UserError(f"{path} holds fewer frames than its record says; cut the clips again.")
    pixels = to_pixels(np.stack(frames), size.height, size.width).to(networks.device)
    found = networks.vae.encode(pixels, job.encoders.tiling)
    factor = networks.vae.config.scaling_factor
    return (found.mean[0] * factor).float().cpu(), (found.logvar[0] + 2 * math.log(factor)).float().cpu()


def _take(frames: Iterator[np.ndarray], numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames with these ascending numbers (a number may repeat), decoding no further than the last one."""
    waiting = list(numbers)
    for number, frame in enumerate(frames):
        while waiting and waiting[0] == number:
            waiting.pop(0)
            yield frame
        if not waiting:
            return
