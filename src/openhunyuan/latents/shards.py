"""Latent datasets as training reads them: samples, batches, mixes, and the deterministic loader.

What `openhunyuan encode` writes is described in `latents.store` (format 2: moments, read when they are asked for). This
file also reads and writes format 1, the simpler one of recipes that encode what they render:

    index.json               what the samples are, which shards there are, how many samples each holds
    shard-00000.safetensors  up to `samples_per_shard` samples
    shard-00001.safetensors  ...

A shard is self-contained: tensors `latents/<i>` [C, T, h, w], `states/<i>` [S, D] and `pooled/<i>` [P] in fp16, and in
its header the prompts, the free-form metadata and the `key` it was made from. Latents are stored *scaled* (VAE mode
times `scaling_factor`), ready for the DiT. Text is stored without padding; padding is put on when a batch is made.

Order is a pure function of (seed, step): a run that stops and resumes sees exactly the batches it would have seen,
without storing the state of any iterator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.latents import store

FORMAT = "openhunyuan-latents-1"
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class LatentSample:
    """One encoded clip and one encoded caption.

    latents: [C, T, h, w], scaled: the mode. states: [S, D] text states without padding, S >= 1. pooled: [P].
    Any floating dtype; stored as fp16. `metadata` must be JSON (clip id, camera, fps, ...). logvar: [C, T, h, w], log
    variance of the scaled latents; None where only the mode was kept.
    """

    latents: Tensor
    states: Tensor
    pooled: Tensor
    prompt: str
    metadata: dict[str, Any] = field(default_factory=dict)
    logvar: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor, rank in (
            ("latents", self.latents, 4),
            ("states", self.states, 2),
            ("pooled", self.pooled, 1),
        ):
            if tensor.ndim != rank:
                raise ValueError(f"{name} must have {rank} dimensions, got shape {tuple(tensor.shape)}")
        if self.states.shape[0] == 0:
            raise ValueError("states must hold at least one token")
        if self.logvar is not None and self.logvar.shape != self.latents.shape:
            raise ValueError(f"logvar must have the latents' shape, got {tuple(self.logvar.shape)}")

    def drawn(self, seed: int, number: int, epoch: int) -> LatentSample:
        """This sample with latents drawn from their distribution (float32) in place of the mode: mean + std * noise,
        the noise a pure function of (seed, number, epoch), `number` the sample's own (`ShardDataset.number`).

        Raises:
            UserError: only the mode was kept.
        """
        if self.logvar is None:
            raise UserError(
                f"The latents of {self.prompt[:60]!r} are modes without variances, so none can be drawn; "
                "train on modes, or encode the clips again."
            )
        digest = hashlib.blake2b(f"latent/{seed}/{number}/{epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        noise = torch.randn(self.latents.shape, generator=generator)
        return replace(self, latents=self.latents.float() + torch.exp(0.5 * self.logvar.float()) * noise)


class LatentDraws:
    """Latents drawn anew at every epoch, where samples carry their distribution; applied as `CaptionAssembly` is."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def apply(self, samples: Sequence[LatentSample], keys: Sequence[tuple[int, int]]) -> list[LatentSample]:
        """The samples with latents drawn for their (number, epoch)."""
        return [sample.drawn(self.seed, *key) for sample, key in zip(samples, keys, strict=True)]


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def write_shard(path: Path, samples: Sequence[LatentSample], key: str = "") -> None:
    """Write one shard atomically. `key` names what it was made from, so that a resumed run can tell a finished shard
    of the same inputs from a stale one."""
    tensors: dict[str, Tensor] = {}
    for i, sample in enumerate(samples):
        stored = {
            f"latents/{i:06d}": sample.latents,
            f"states/{i:06d}": sample.states,
            f"pooled/{i:06d}": sample.pooled,
        }
        for name, tensor in stored.items():
            half = tensor.detach().to("cpu", torch.float16).contiguous()
            if not torch.isfinite(half).all():
                raise ValueError(f"sample {i} of {path.name}: {name} is not finite in fp16 (prompt: {sample.prompt!r})")
            tensors[name] = half
    header = {
        "format": FORMAT,
        "key": key,
        "samples": len(samples),
        "prompts": [s.prompt for s in samples],
        "metadata": [s.metadata for s in samples],
    }
    # One entry only: safetensors writes several in random order, and the same samples must give the same bytes.
    write_atomic(path, save(tensors, metadata={"shard": json.dumps(header)}))


def read_shard_header(path: Path) -> dict[str, Any] | None:
    """The header of a complete shard (format, key, samples, prompts, metadata), or None when the file is missing, cut
    off or not a shard of this format."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("shard", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError):
        return None
    return header if header.get("format") == FORMAT else None


def read_shard(path: Path) -> list[LatentSample]:
    """All samples of one shard. Raises UserError when the file is missing, cut off or of another format."""
    header = read_shard_header(path)
    if header is None:
        raise UserError(f"{path} is missing, cut off or not a latent shard of this version; encode the clips again.")
    prompts, metadata = header["prompts"], header["metadata"]
    with safe_open(path, framework="pt") as file:
        return [
            LatentSample(
                latents=file.get_tensor(f"latents/{i:06d}"),
                states=file.get_tensor(f"states/{i:06d}"),
                pooled=file.get_tensor(f"pooled/{i:06d}"),
                prompt=prompts[i],
                metadata=metadata[i],
            )
            for i in range(len(prompts))
        ]


def write_index(
    folder: Path, shards: Sequence[str], provenance: dict[str, Any] | None = None, name: str = INDEX_NAME
) -> None:
    """Write index.json for the named shards, reading sizes and shapes from the shards themselves."""
    entries: list[dict[str, Any]] = []
    shapes: dict[str, int] = {}
    for shard in shards:
        header = read_shard_header(folder / shard)
        if header is None:
            raise UserError(f"{folder / shard} is not a complete latent shard; encode the clips again.")
        with safe_open(folder / shard, framework="pt") as file:
            for i in range(header["samples"]):
                shape = "x".join(str(n) for n in file.get_slice(f"latents/{i:06d}").get_shape())
                shapes[shape] = shapes.get(shape, 0) + 1
        entries.append({"file": shard, "samples": header["samples"], "key": header["key"]})
    index = {
        "format": FORMAT,
        "samples": sum(e["samples"] for e in entries),
        "latent_shapes": shapes,
        "shards": entries,
        "provenance": provenance or {},
    }
    write_atomic(folder / name, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def remove_samples(folder: Path, gone: Callable[[dict[str, Any]], bool]) -> int:
    """Take the samples whose metadata says so out of a latent dataset, and out of what older runs left in its folder;
    returns how many of the dataset in use went.

    A shard that changes loses its key, so that encoding makes it again from the clips that are left; one that becomes
    empty goes, and so does the index of a dataset that becomes empty. A folder that is no dataset is left alone.
    """
    removed = 0
    for path in sorted(folder.glob("index*.json")):
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(index, dict) and index.get("format") == FORMAT:
            count = _remove_from_shards(folder, path, index, gone)
            removed += count if path.name == INDEX_NAME else 0
    return removed + store.remove_from_store(folder, gone)


def _remove_from_shards(folder: Path, path: Path, index: dict[str, Any], gone: Callable[[dict[str, Any]], bool]) -> int:
    removed, names = 0, []
    for entry in index["shards"]:
        shard = folder / entry["file"]
        samples = read_shard(shard)
        left = [sample for sample in samples if not gone(sample.metadata)]
        removed += len(samples) - len(left)
        if left and len(left) < len(samples):
            write_shard(shard, left)
        elif not left:
            shard.unlink()
        names += [entry["file"]] if left else []
    if removed and names:
        write_index(folder, names, index["provenance"], path.name)
    elif not names:
        path.unlink()
    return removed


class ShardWriter:
    """Write samples one by one into a new dataset folder; the index appears last, so a dataset either is whole or has
    no index.

        with ShardWriter(path, provenance={"world_seed": 7}) as writer:
            writer.add(sample)
    """

    def __init__(
        self, path: Path | str, samples_per_shard: int = 1024, provenance: dict[str, Any] | None = None
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError("samples_per_shard must be at least 1")
        self.path = Path(path)
        self.samples_per_shard = samples_per_shard
        self.provenance = provenance
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / INDEX_NAME).unlink(missing_ok=True)
        self._pending: list[LatentSample] = []
        self._shards: list[str] = []

    def add(self, sample: LatentSample) -> None:
        self._pending.append(sample)
        if len(self._pending) == self.samples_per_shard:
            self._flush()

    def close(self) -> None:
        self._flush()
        for stale in self.path.glob("shard-*.safetensors"):
            if stale.name not in self._shards:
                stale.unlink()
        write_index(self.path, self._shards, self.provenance)

    def _flush(self) -> None:
        if self._pending:
            name = shard_name(len(self._shards))
            write_shard(self.path / name, self._pending)
            self._shards.append(name)
            self._pending = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()


class ShardDataset:
    """All samples of a dataset folder: in memory (format 1), or read from their files when asked for (format 2).

    `dataset[i] -> LatentSample`; `dataset.batch([i, j, ...]) -> dict of tensors`; `dataset.buckets()` groups the
    indices by latent shape, because only equal shapes stack into one batch.
    """

    def __init__(self, path: Path | str, fingerprint: str | None = None) -> None:
        """
        Args:
            path: a dataset's folder.
            fingerprint: of an older dataset in it; None: the one in use.

        Raises:
            UserError: no dataset, one of an unknown format, a file that is missing or cut off, a stale mix.
        """
        self.path = Path(path)
        index_path = self.path / (INDEX_NAME if fingerprint is None else f"index-{fingerprint}.json")
        if not index_path.is_file():
            raise UserError(
                f"{self.path} holds no latent dataset ({index_path.name} is missing); encode clips into it first."
            )
        self.index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
        self._held: list[LatentSample] = []
        self._places: list[tuple[store.Reader, store.Reader, int]] = []
        self.shapes: list[tuple[int, ...]] = []
        """Latent shape [C, T, h, w] of every sample."""
        self.weights: tuple[float, ...] | None = None
        """How often samples are to come, relative to each other (`latents.resample`); None: all alike."""
        if self.index.get("format") == FORMAT:
            self._read_shards()
        elif self.index.get("format") == store.FORMAT:
            for bucket, moments, texts in store.check_index(self.path, self.index):
                count = len(moments.header["samples"])
                self._places += [(moments, texts, number) for number in range(count)]
                self.shapes += [tuple(bucket["latent_shape"])] * count
        else:
            known = f"{FORMAT!r} and {store.FORMAT!r}"
            raise UserError(f"{index_path} is of format {self.index.get('format')!r}; this version reads {known}.")

    def _read_shards(self) -> None:
        for entry in self.index["shards"]:
            samples = read_shard(self.path / entry["file"])
            if len(samples) != entry["samples"]:
                raise UserError(
                    f"{entry['file']} holds {len(samples)} samples, the index says {entry['samples']}; "
                    "encode the clips again."
                )
            self._held.extend(samples)
        self.shapes = [tuple(sample.latents.shape) for sample in self._held]

    @property
    def samples(self) -> list[LatentSample]:
        """All samples, in memory."""
        return [self[number] for number in range(len(self))]

    @property
    def files(self) -> list[Any]:
        """The index's entries of all files, JSON: other samples, texts or an other order have other ones."""
        return self.index["shards"] if "shards" in self.index else [b["shards"] for b in self.index["buckets"]]

    @property
    def has_variances(self) -> bool:
        """Whether latents can be drawn from the distribution of every sample."""
        files = {moments.path: moments for moments, _, _ in self._places}
        return bool(files) and all(moments.has("logvar") for moments in files.values())

    @property
    def made(self) -> dict[str, Any]:
        """What the latents were made with, as far as it is known: `vae`, `text_encoders`, `preprocessing`, ..."""
        made = dict(self.index.get("made") or {})
        provenance = self.index.get("provenance") or {}
        if not made and "model" in provenance:
            made["model"] = provenance["model"]
        return made

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> LatentSample:
        if self._held:
            return self._held[index]
        moments, texts, number = self._places[index]
        said = texts.header["samples"][number]
        return LatentSample(
            latents=moments.tensor("mean", number),
            states=texts.tensor("states", number),
            pooled=texts.tensor("pooled", number),
            prompt=said["prompt"],
            metadata=self.metadata(index),
            logvar=moments.tensor("logvar", number) if moments.has("logvar") else None,
        )

    def metadata(self, index: int) -> dict[str, Any]:
        """What is known of a sample; reads no tensor."""
        if self._held:
            return self._held[index].metadata
        moments, texts, number = self._places[index]
        return {**moments.header["samples"][number], **texts.header["samples"][number]["metadata"]}

    def prompt(self, index: int) -> str:
        """A sample's text as it was encoded; reads no tensor."""
        if self._held:
            return self._held[index].prompt
        _, texts, number = self._places[index]
        return texts.header["samples"][number]["prompt"]

    def number(self, index: int, place: int) -> int:
        """What a sample's draws (text, latents, noise) are keyed by, in [0, 2^63): a hash of its name, so that it does
        not depend on the samples beside it. `place`, where samples have no names, as those of the synthetic world."""
        name = self.metadata(index).get("sample")
        if name is None:
            return place
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1

    def buckets(self) -> dict[tuple[int, ...], list[int]]:
        """Latent shape -> indices of the samples that have it."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i, shape in enumerate(self.shapes):
            found.setdefault(shape, []).append(i)
        return found

    def batch(self, indices: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Stack samples: latents [B, C, T, h, w], text_states [B, S, D] right-padded with zeros, text_mask [B, S] bool
        (True = real token), pooled [B, P]. S is the longest text of this batch, not of the dataset."""
        return collate([self[i] for i in indices], dtype)


def check_mix(datasets: Sequence[ShardDataset]) -> None:
    """Raise UserError unless the datasets may be trained on together: the same VAE, text encoders and version of the
    preprocessing, as far as each says. Sizes, rates and captioners may differ."""
    seen: dict[str, tuple[Any, ShardDataset]] = {}
    for dataset in datasets:
        made = dataset.made
        made["preprocessing"] = (made.get("preprocessing") or {}).get("version")
        for what in ("model", "vae", "text_encoders", "preprocessing"):
            value = made.get(what)
            if value is None:
                continue
            other, first = seen.setdefault(what, (value, dataset))
            if other != value:
                raise UserError(
                    f"The latents of {dataset.path} and {first.path} were made with different "
                    f"{'weights' if what == 'model' else what.replace('_', ' ')}; encode one of them again "
                    "(nothing is deleted)."
                )


def collate(samples: Sequence[LatentSample], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The batch of `ShardDataset.batch` from samples; raises ValueError when their latent shapes differ."""
    shapes = {tuple(s.latents.shape) for s in samples}
    if len(shapes) != 1:
        raise ValueError(f"one batch needs latents of one shape, got {sorted(shapes)}; draw batches from one bucket")
    lengths = [s.states.shape[0] for s in samples]
    states = torch.zeros(len(samples), max(lengths), samples[0].states.shape[1], dtype=dtype)
    for row, sample in zip(states, samples, strict=True):
        row[: sample.states.shape[0]] = sample.states.to(dtype)
    return {
        "latents": torch.stack([s.latents for s in samples]).to(dtype),
        "text_states": states,
        "text_mask": torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None],
        "pooled": torch.stack([s.pooled for s in samples]).to(dtype),
    }


@lru_cache(maxsize=64)
def _permutation(count: int, *entropy: int) -> np.ndarray:
    order = np.random.default_rng(entropy).permutation(count)
    order.setflags(write=False)
    return order


def epoch_shuffled(count: int, positions: Iterable[int], *entropy: int) -> list[int]:
    """Positions of an endless stream of shuffled epochs over `count` items -> item numbers.

    Every epoch visits every item once, in an order fixed by (entropy, epoch); a pure function of its arguments.
    """
    return [int(_permutation(count, *entropy, p // count)[p % count]) for p in positions]


@dataclass(frozen=True)
class MixEntry:
    """A dataset and its share of the batches (shares are relative; they need not sum to 1)."""

    dataset: ShardDataset
    weight: float = 1.0


@dataclass(frozen=True)
class _Source:
    dataset: ShardDataset
    indices: tuple[int, ...]


class Loader:
    """Deterministic shuffled batches from one dataset or a weighted mix of several.

    `loader.batch(step)` is a pure function of (seed, step). Each batch comes from one bucket (one latent shape) of one
    dataset. Shares are kept exactly over every `PERIOD` steps: within a period the sources are a seeded shuffle of a
    fixed count of each, so that how often a source was drawn before any step is known without replaying the run.
    With world_size > 1, each rank receives its own `batch_size` samples of the same global batch.
    """

    PERIOD = 1000

    def __init__(
        self,
        mix: ShardDataset | Sequence[MixEntry],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        draw: bool = False,
    ) -> None:
        """draw: latents drawn anew at every epoch in place of the mode (see `LatentSample.drawn`)."""
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError("batch_size must be at least 1 and rank must be in [0, world_size)")
        entries = [MixEntry(mix)] if isinstance(mix, ShardDataset) else list(mix)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        check_mix([entry.dataset for entry in entries])
        self._draws = LatentDraws(seed) if draw else None
        self._sources: list[_Source] = []
        shares: list[float] = []
        for entry in entries:
            if entry.weight < 0:
                raise ValueError("a dataset's share must not be negative")
            if entry.weight == 0:
                continue
            if len(entry.dataset) == 0:
                raise UserError(f"{entry.dataset.path} holds no samples; encode some clips or take it out of the mix.")
            for indices in entry.dataset.buckets().values():
                self._sources.append(_Source(entry.dataset, tuple(indices)))
                shares.append(entry.weight * len(indices) / len(entry.dataset))
        if not self._sources:
            raise ValueError("the mix is empty")
        self._counts = apportion(shares, self.PERIOD)
        self._deck = np.repeat(np.arange(len(self._counts)), self._counts)

    def source_of(self, step: int) -> tuple[int, int]:
        """(source number, how many earlier steps drew from the same source)."""
        if step < 0:
            raise ValueError("step must not be negative")
        period, place = divmod(step, self.PERIOD)
        if len(self._counts) == 1:
            return 0, step
        order = self._deck[_permutation(self.PERIOD, self.seed, 1, period)]
        source = int(order[place])
        return source, period * int(self._counts[source]) + int((order[:place] == source).sum())

    def select(self, step: int) -> tuple[ShardDataset, list[int]]:
        """The dataset and the sample indices of this rank's batch at `step`."""
        dataset, keys = self._keys(step)
        return dataset, [index for index, _ in keys]

    def _keys(self, step: int) -> tuple[ShardDataset, list[tuple[int, int]]]:
        """The dataset, and (sample index, epoch) of this rank's batch."""
        number, drawn = self.source_of(step)
        source = self._sources[number]
        first = (drawn * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        places = epoch_shuffled(len(source.indices), positions, self.seed, 2, number)
        epochs = [position // len(source.indices) for position in positions]
        return source.dataset, [(source.indices[i], epoch) for i, epoch in zip(places, epochs, strict=True)]

    def batch(self, step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        dataset, keys = self._keys(step)
        samples = [dataset[index] for index, _ in keys]
        if self._draws:
            samples = self._draws.apply(samples, [(dataset.number(index, index), epoch) for index, epoch in keys])
        return collate(samples, dtype)


def apportion(shares: Sequence[float], seats: int) -> np.ndarray:
    """Whole seats for each share (largest remainder), at least one each, summing to `seats`."""
    if len(shares) > seats:
        raise ValueError(f"at most {seats} buckets in one mix, got {len(shares)}")
    exact = np.asarray(shares, dtype=np.float64) / np.sum(shares) * seats
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() < seats:
        counts[int(np.argmax(exact - counts))] += 1
    while counts.sum() > seats:
        counts[int(np.argmax(np.where(counts > 1, counts - exact, -np.inf)))] -= 1
    return counts
