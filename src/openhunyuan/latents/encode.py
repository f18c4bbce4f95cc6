"""Clips with captions in, a latent dataset out: the VAE and the text encoders run once, training reads the result.

What goes into which file is decided before anything is encoded: samples of one bucket in the order of the clips. Every
file is named by what its samples are made of, and samples that were ever encoded in the folder are copied, so a run
that is started again encodes only what is new: another caption costs a text, another clip its own latents. Several
processes, on one machine or on many, share the files between them; the index is written by whoever finds them all.

Samples are encoded one by one (texts a few at a time) and each is on disk, as a part, before the next is begun; a file
is put together from its parts, which then go. A sample that cannot be encoded is left out with its reason: its file
holds the others, and a run that is started again tries it again.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import iter_video
from openhunyuan.caption.camera import caption_of_frames, gate_of
from openhunyuan.curate.clip import Clip, ClipCaption
from openhunyuan.curate.engine import Processes
from openhunyuan.latents import store
from openhunyuan.latents.buckets import choose_bucket, describe
from openhunyuan.latents.captions import CAPTION, PromptEncoder

PREPROCESSING = 1
"""Raised when the same clip would give other pixels than before."""
TEXTS_AT_ONCE = 16
GATES = "camera"
"""In what a dataset was made with: the gates of its camera labels, which are those of the encoded frames."""
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

    encoded: samples that went through the VAE now. missing: shards that other processes have still to write. failed:
    of those left out, the ones that could not be encoded.
    """

    samples: int
    written: int
    skipped: int
    left_out: tuple[tuple[str, str], ...]
    encoded: int = 0
    missing: int = 0
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One sample to be: a span of a clip, the caption of these frames, its size. unplaced: the caption that it was made
    from names a camera move, and nothing says whether these frames have it; so theirs names none."""

    clip: Clip
    caption: ClipCaption
    first: int
    size: VideoSize
    unplaced: bool = False

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
    Clips that are too short and samples that cannot be encoded (a file that is broken or gone, values beyond half
    precision) are left out and named in the report and in the index.

    Raises:
        UserError: no clip can be encoded; captions of two versions of one captioner, or camera labels of two gates.
        OSError: the disk is full.
    """
    folder, output = Path(folder), Path(output)
    sizes = (sizes,) if isinstance(sizes, VideoSize) else tuple(sizes)
    samples, left_out = plan_samples(clips, sizes, fps, captioner)
    if not samples:
        reason = f"; the first one {left_out[0][1]}" if left_out else ""
        shortest = min(size.num_frames for size in sizes)
        rate = f" and {fps:g} frames a second" if fps else ""
        raise UserError(
            f"None of the {len(clips)} clips can be encoded at {shortest} frames{rate}{reason}; longer clips, fewer "
            "frames (--num-frames or --bucket) or more frames a second (--fps) let them in."
        )
    check_one_version(samples)
    made = made_with(encoders, fps)
    shards = _shards(samples, made, samples_per_shard)
    output.mkdir(parents=True, exist_ok=True)

    number, of = part
    jobs = [shard for i, shard in enumerate(shards) if i % of == number - 1 and not shard.is_complete(output)]
    done = sum(len(shard.samples) for shard in shards if shard.is_complete(output))
    encoded = written = 0
    if on_sample:
        on_sample(done, len(samples))
    for step in _run(jobs, _Job(folder, output, encoders, made, fps), workers):
        done, encoded, written = done + step.samples, encoded + step.encoded, written + step.files
        if on_sample and step.samples:
            on_sample(done, len(samples))

    found = [shard.as_written(output) for shard in shards]
    failed = [item for shard in found if shard for item in shard.left_out]
    missing = sum(shard is None for shard in found)
    whole = [shard for shard in found if shard and shard.samples]
    if not whole and failed:
        name, why = failed[0]
        raise UserError(f"None of the {len(failed)} samples could be encoded; the first one, {name}, {why}")
    left_out += failed
    if not missing:
        captions = Counter(sample.caption.signature for shard in whole for sample in shard.samples)
        made |= {"captions": sorted(captions), "buckets": sorted(str(size) for size in sizes)}
        gates = {gate for shard in whole for sample in shard.samples if (gate := gate_of(sample.caption))}
        made |= {GATES: sorted(gates)} if gates else {}
        files = [(shard.bucket, len(shard.samples), shard.files()) for shard in whole]
        index = make_index(files, made, dict(captions), {"model": encoders.model, "fps": fps, "captioner": captioner})
        index["left_out"] = [list(item) for item in left_out]
        store.write_dataset_index(output, index)
        store.remove_parts(output, {key for shard in whole for key in (*shard.moment_keys, *shard.text_keys)})
    return EncodeReport(
        len(samples) - len(failed),
        written,
        len(shards) - written - missing,
        tuple(left_out),
        encoded,
        missing,
        tuple(failed),
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
                shown = shown_caption(clip, caption, fps, first, size.num_frames)
                unplaced = shown is not caption and caption.camera is None
                samples.append(Sample(clip, shown, first, size, unplaced))
            else:
                needed = min(size.num_frames for size in sizes)
                name = f"{clip.id}@{first}" if first else clip.id
                left_out.append((name, f"has {available} of the {needed} frames needed"))
    return samples, left_out


def check_one_version(samples: Sequence[Sample]) -> None:
    """Raise UserError when captions of two versions of one captioner would be mixed, or camera labels of two gates."""
    gates = Counter(gate for sample in samples if (gate := gate_of(sample.caption))).most_common(2)
    if len(gates) > 1:
        (a, n), (b, m) = gates
        raise UserError(
            f"Of the samples' camera labels {n} are of {a} and {m} of {b}; "
            "bring them to one gate with openhunyuan caption and the options of before, which asks nothing again."
        )
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


def shown_caption(clip: Clip, caption: ClipCaption, fps: float | None, first: int, num_frames: int) -> ClipCaption:
    """The caption as it is true of the sample that begins with frame `first` and has so many frames at `fps`."""
    last = frame_numbers(clip, num_frames, fps, first)[-1] + 1
    return caption_of_frames(caption, clip.num_frames, first, last)


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
    left_out: tuple[tuple[str, str], ...] = ()
    """(sample, reason) of those that were to be in it and could not be encoded."""

    def keys(self, kind: str) -> tuple[str, ...]:
        return self.moment_keys if kind == store.MOMENTS else self.text_keys

    def file(self, kind: str) -> str:
        return store.file_name(str(self.bucket), kind, self.key(kind))

    def key(self, kind: str) -> str:
        return store.key_of(list(self.keys(kind)))

    def files(self) -> dict[str, dict[str, str]]:
        return {kind: {"file": self.file(kind), "key": self.key(kind)} for kind in (store.MOMENTS, store.TEXTS)}

    def has(self, output: Path, kind: str) -> bool:
        header = store.read_header(output / self.file(kind))
        return header is not None and header["key"] == self.key(kind)

    def is_complete(self, output: Path) -> bool:
        return self.has(output, store.MOMENTS) and self.has(output, store.TEXTS)

    def without(self, failed: Mapping[str, str]) -> Shard:
        """The shard of the other samples; failed: sample → reason."""
        rows = [i for i, sample in enumerate(self.samples) if sample.name not in failed]
        return Shard(
            self.bucket,
            tuple(self.samples[i] for i in rows),
            tuple(self.moment_keys[i] for i in rows),
            tuple(self.text_keys[i] for i in rows),
            tuple((sample.name, failed[sample.name]) for sample in self.samples if sample.name in failed),
        )

    def record(self, output: Path) -> Path:
        """Where it is noted which of the samples could not be encoded, for runs that share the folder."""
        return output / store.record_name(str(self.bucket), store.key_of([self.moment_keys, self.text_keys]))

    def as_written(self, output: Path) -> Shard | None:
        """The shard as its files are, perhaps without samples that could not be encoded; None where they lack."""
        if self.is_complete(output):
            return self
        failed = store.read_record(self.record(output))
        shard = self.without(failed) if failed else self
        return shard if failed and (not shard.samples or shard.is_complete(output)) else None


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
    said = [caption.text, caption.fields, caption.signature, caption.fields.get("camera")]
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
        provenance: what else is worth knowing; `fps` gives the buckets' seconds, `captioner` says whose captions were
            asked for (None: the newest).
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


class _Step(NamedTuple):
    """How far a run has come: samples that are done with, samples that went through the VAE, shards written."""

    samples: int = 0
    encoded: int = 0
    files: int = 0


@dataclass(frozen=True)
class _Piece:
    """Samples of one shard that one process encodes and writes at once, as a part. of: the shard's number; rows: theirs
    in it."""

    of: int
    kind: str
    bucket: VideoSize
    rows: tuple[int, ...]
    samples: tuple[Sample, ...]
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"the {self.kind} of {', '.join(sample.name for sample in self.samples)}"


@dataclass(frozen=True)
class _Whole:
    """A shard whose files one process puts together from samples that lie in others. of: its number; failed: sample →
    why it could not be encoded."""

    of: int
    shard: Shard
    places: dict[str, store.Place]
    failed: dict[str, str]


@dataclass
class _Open:
    """A shard in the making: where its samples lie by their keys, sample → why it failed, row → pieces to come."""

    number: int
    shard: Shard
    places: dict[str, store.Place]
    failed: dict[str, str] = field(default_factory=dict)
    lacking: Counter[int] = field(default_factory=Counter)

    def pieces(self) -> list[_Piece]:
        """What is to be encoded. Texts that one piece holds go through the encoders together, so what it holds does not
        depend on where a run was stopped."""
        shard, found = self.shard, []
        for start in range(0, len(shard.samples), TEXTS_AT_ONCE):
            rows = range(start, min(start + TEXTS_AT_ONCE, len(shard.samples)))
            texts = [i for i in rows if shard.text_keys[i] not in self.places]
            found += [self._piece(store.TEXTS, texts)] if texts else []
            found += [self._piece(store.MOMENTS, [i]) for i in rows if shard.moment_keys[i] not in self.places]
        return found

    def _piece(self, kind: str, rows: Sequence[int]) -> _Piece:
        self.lacking.update(rows)
        keys = self.shard.keys(kind)
        samples = tuple(self.shard.samples[i] for i in rows)
        return _Piece(self.number, kind, self.shard.bucket, tuple(rows), samples, tuple(keys[i] for i in rows))

    def whole(self) -> _Whole:
        return _Whole(self.number, self.shard, self.places, self.failed)


def _run(jobs: Sequence[Shard], job: _Job, workers: int) -> Iterator[_Step]:
    """Encode and write shards, here or in processes; tells what was done as it is done."""
    if not jobs:
        return
    known = {kind: store.find_samples(job.output, kind) for kind in (store.MOMENTS, store.TEXTS)}
    opened = [_Open(number, shard, _known(shard, known)) for number, shard in enumerate(jobs)]
    pieces = [piece for one in opened for piece in one.pieces()]
    queue = deque[_Piece | _Whole]([*(one.whole() for one in opened if not one.lacking), *pieces])
    done = sum(len(one.shard.samples) - len(one.lacking) for one in opened)
    if done:
        yield _Step(done)
    begin = partial(_begin, job, bool(pieces), workers > 0)
    if not workers:
        begin(0)
    try:
        with Processes(min(workers, len(queue)), math.inf, begin) as engine:
            for result in engine.map(_work, queue):
                item, one = result.item, opened[result.item.of]
                if isinstance(item, _Whole):
                    if result.error:
                        raise UserError(
                            f"The files of {item.shard.bucket} could not be put together ({result.error}); what was "
                            "encoded is kept. Start again, with fewer workers where memory is short."
                        )
                    yield _Step(files=int(result.value))
                    continue
                why = f"cannot be encoded: {result.error}"
                places, failed = result.value or ({}, {sample.name: why for sample in item.samples})
                yield _taken(one, item, places, failed)
                if not one.lacking:
                    queue.appendleft(one.whole())
    finally:
        _LOADED.clear()


def _taken(one: _Open, piece: _Piece, places: dict[str, store.Place], failed: dict[str, str]) -> _Step:
    """Note in a shard what became of a piece of it."""
    one.places |= places
    one.failed |= failed
    one.lacking.subtract(piece.rows)
    done = [row for row in piece.rows if not one.lacking[row]]
    for row in done:
        del one.lacking[row]
    return _Step(len(done), len(places) if piece.kind == store.MOMENTS else 0)


def _known(shard: Shard, known: dict[str, dict[str, store.Place]]) -> dict[str, store.Place]:
    """Of all samples that were ever encoded, those of a shard."""
    found = {key: known[store.MOMENTS].get(key) for key in shard.moment_keys}
    found |= {key: known[store.TEXTS].get(key) for key in shard.text_keys}
    return {key: place for key, place in found.items() if place is not None}


_LOADED: dict[str, Any] = {}
"""Where work is done: the job, and the networks, loaded once."""


def _begin(job: _Job, load: bool, several: bool, number: int) -> None:
    """Make this process ready for work. load: there is something to encode, not only to copy. several: this
    process, with this number, is one of several."""
    if several:
        torch.set_num_threads(1)
    _LOADED.update(job=job, networks=job.encoders.load(number) if load else None)


def _work(item: _Piece | _Whole) -> Any:
    if isinstance(item, _Whole):
        return _finish(item.shard, item.places, item.failed, _LOADED["job"])
    return _encode(item, _LOADED["job"], _LOADED["networks"])


def lazily(load: Callable[[], Any]) -> Callable[[], Any]:
    """The same, called once, when it is needed."""
    held: list[Any] = []

    def get() -> Any:
        if not held:
            held.append(load())
        return held[0]

    return get


def _encode(piece: _Piece, job: _Job, networks: Networks) -> tuple[dict[str, store.Place], dict[str, str]]:
    """Write the part of a piece: (key → where the sample lies, sample → why it could not be encoded)."""
    encode = _encode_moments if piece.kind == store.MOMENTS else _encode_texts
    encoded = encode(piece.samples, job, networks)
    failed = {sample.name: made for sample, made in zip(piece.samples, encoded, strict=True) if isinstance(made, str)}
    kept = [
        (sample, key, made)
        for sample, key, made in zip(piece.samples, piece.keys, encoded, strict=True)
        if not isinstance(made, str)
    ]
    if not kept:
        return {}, failed
    keys = [key for _, key, _ in kept]
    path = job.output / store.part_name(str(piece.bucket), piece.kind, store.key_of(keys))
    tensors = {f"{name}/{i:06d}": tensor for i, (_, _, made) in enumerate(kept) for name, tensor in made.items()}
    _write(path, piece.kind, tensors, keys, [sample for sample, _, _ in kept], job)
    return {key: store.Place(path, i) for i, key in enumerate(keys)}, failed


def _finish(shard: Shard, places: dict[str, store.Place], failed: dict[str, str], job: _Job) -> bool:
    """Put the files of a shard together from samples that lie in others; whether there was anything to write."""
    record = shard.record(job.output)
    if failed:
        store.write_record(record, failed)
        shard = shard.without(failed)
    if not shard.samples:
        return False
    written = False
    for kind, names in ((store.MOMENTS, ("mean", "logvar")), (store.TEXTS, ("states", "pooled"))):
        if not shard.has(job.output, kind):
            readers, keys = _Readers(), shard.keys(kind)
            tensors = {
                f"{name}/{i:06d}": readers.tensor(places[key], name) for i, key in enumerate(keys) for name in names
            }
            _write(job.output / shard.file(kind), kind, tensors, keys, shard.samples, job)
            written = True
    if not failed:
        record.unlink(missing_ok=True)
    store.remove_parts(job.output, {*shard.moment_keys, *shard.text_keys}, str(shard.bucket))
    return written


def _write(
    path: Path, kind: str, tensors: dict[str, Tensor], keys: Sequence[str], samples: Sequence[Sample], job: _Job
) -> None:
    whats = ("vae", "preprocessing") if kind == store.MOMENTS else ("text_encoders",)
    about = [_about_moments(sample, job) if kind == store.MOMENTS else _about_text(sample) for sample in samples]
    store.write_file(path, kind, tensors, {what: job.made[what] for what in whats}, keys, about)


def _about_moments(sample: Sample, job: _Job) -> dict[str, Any]:
    return {
        "sample": sample.name,
        "clip": sample.clip.id,
        "source": sample.clip.source,
        "fps": job.fps or sample.clip.fps,
        "first_frame": sample.first,
    }


def _about_text(sample: Sample) -> dict[str, Any]:
    metadata: dict[str, Any] = {"camera": sample.caption.fields.get("camera"), "captioner": sample.caption.signature}
    if sample.caption.fields:
        metadata[CAPTION] = sample.caption.fields  # other texts can be assembled from it when batches are made
    return {"sample": sample.name, "clip": sample.clip.id, "prompt": sample.caption.text, "metadata": metadata}


def _encode_moments(samples: Sequence[Sample], job: _Job, networks: Networks) -> list[dict[str, Tensor] | str]:
    found: list[dict[str, Tensor] | str] = []
    for sample in samples:
        frames = _frames(sample, job)
        if isinstance(frames, str):
            found.append(frames)
        else:
            mean, logvar = _moments(frames, sample.size, job, networks)
            found.append(_finite({"mean": mean, "logvar": logvar}))
    return found


def _encode_texts(samples: Sequence[Sample], job: _Job, networks: Networks) -> list[dict[str, Tensor] | str]:
    tensors: dict[str, Tensor] = {}
    kind = "image" if samples[0].size.is_image else "video"
    encode_texts(networks.text, [sample.caption.text for sample in samples], range(len(samples)), kind, tensors)
    return [
        _finite({name: tensors[f"{name}/{row:06d}"] for name in ("states", "pooled")}) for row in range(len(samples))
    ]


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor] | str:
    """The tensors, or why they cannot be stored."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.half()).all():
            return f"cannot be stored: its {name} is not finite in half precision."
    return tensors


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
        # A copy: a mapped file for every part would be more than a process may hold.
        return self._open[place.path].tensor(name, place.number).clone()


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


def _frames(sample: Sample, job: _Job) -> np.ndarray | str:
    """The frames of a sample, uint8 [T, H, W, 3], or why they cannot be had."""
    path, wanted = job.folder / str(sample.clip.path), sample.size.num_frames
    try:
        frames = list(_take(iter_video(path), frame_numbers(sample.clip, wanted, job.fps, sample.first)))
        if len(frames) == wanted:
            return np.stack(frames)
    except ValueError as error:  # a UserError, or frames of several sizes
        return f"cannot be read: {error}".replace(str(path), str(sample.clip.path))
    return f"cannot be read: {sample.clip.path} holds fewer frames than its record says."


@torch.no_grad()
def _moments(frames: np.ndarray, size: VideoSize, job: _Job, networks: Networks) -> tuple[Tensor, Tensor]:
    """Mean and log variance [C, T, h, w] of the scaled latents."""
    pixels = to_pixels(frames, size.height, size.width).to(networks.device)
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
