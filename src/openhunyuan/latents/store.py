"""Encoded clips on disk, addressed by what they were made from: files of moments, files of texts, and the index.

A dataset of format 2 is a folder:

    index.json                        the dataset in use: buckets, their files, what all was made from
    index-<fingerprint>.json          every dataset that was finished here, each made from something else
    5x32x32/moments-<key>.safetensors mean/<i> and logvar/<i>, fp16 [C, T, h, w], of one bucket
    5x32x32/texts-<key>.safetensors   states/<i> [S, D] without padding and pooled/<i> [P], fp16, of the same
    5x32x32/moments-part-<key>.…      some samples of a file that is not complete yet, in the same form; also texts-part
    5x32x32/left-out-<key>.json       samples that could not be encoded, with reasons; the next run tries them again

The means are stored scaled (times the VAE's `scaling_factor` s) and the log variances with them (plus 2 ln s), so that
mean + exp(logvar / 2) * noise is what the transformer reads. A file of imported latents may have no log variances.
Moments and texts lie apart because captions change more often than pictures. Each file's header, the one safetensors
metadata entry `shard`, holds what it was made from, the keys of its samples and what is known of each of them; every
sample has a key of its own, so that one that was ever encoded here is copied and not encoded again. Files are written
whole or not at all, and nothing is deleted but parts whose samples lie in a whole file: a file that no index names is
only disk space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic

FORMAT = "openhunyuan-latents-2"
MOMENTS, TEXTS = "moments", "texts"


def key_of(value: Any) -> str:
    """32 hex digits of anything that is JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def file_name(bucket: str, kind: str, key: str) -> str:
    """The name of a file, relative to the dataset's folder."""
    return f"{bucket}/{kind}-{key[:16]}.safetensors"


def part_name(bucket: str, kind: str, key: str) -> str:
    """The name of a part: samples that wait for the rest of their file."""
    return f"{bucket}/{kind}-part-{key[:16]}.safetensors"


def record_name(bucket: str, key: str) -> str:
    """The name of the record of samples that could not be encoded; key: of the file as it was planned."""
    return f"{bucket}/left-out-{key[:16]}.json"


def write_record(path: Path, left_out: Mapping[str, str]) -> None:
    """left_out: sample → reason."""
    write_atomic(path, (json.dumps(left_out, indent=2, sort_keys=True) + "\n").encode())


def read_record(path: Path) -> dict[str, str]:
    """Sample → reason; empty where there is no record."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_file(
    path: Path, kind: str, tensors: Mapping[str, Tensor], made: Mapping[str, Any], keys: Sequence[str], about: Any
) -> None:
    """Write one file atomically.

    made: what all samples were made with (weights, preprocessing). keys: of the samples, in their order. about: what is
    known of each sample, JSON.

    Raises:
        UserError: a value that fp16 cannot hold; names the sample.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(half).all():
            kind, number = name.split("/")
            raise UserError(f"The {kind} of sample {about[int(number)]['sample']} is not finite in half precision.")
        stored[name] = half
    header = {
        "format": FORMAT,
        "kind": kind,
        "key": key_of(list(keys)),
        "made": dict(made),
        "keys": list(keys),
        "samples": about,
    }
    # One entry only: safetensors writes several in random order, and the same samples must give the same bytes.
    write_atomic(path, save(stored, metadata={"shard": json.dumps(header)}))


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of a complete file of this format; None when it is missing, cut off or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("shard", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError):
        return None
    return header if header.get("format") == FORMAT else None


@dataclass(frozen=True)
class Place:
    """Where a sample lies: a file and its number there."""

    path: Path
    number: int


def find_samples(folder: Path, kind: str) -> dict[str, Place]:
    """Sample key → where it lies, over all files of a dataset's folder, old ones and parts too. Reads headers only."""
    found: dict[str, Place] = {}
    # Parts first, so that a whole file, which stays, is preferred.
    for path in sorted(folder.glob(f"*/{kind}-*.safetensors"), key=lambda path: ("-part-" not in path.name, path)):
        header = read_header(path)
        if header is not None and header["kind"] == kind:
            found.update({key: Place(path, number) for number, key in enumerate(header["keys"])})
    return found


def remove_parts(folder: Path, keys: set[str], bucket: str = "*") -> None:
    """Delete the parts all of whose samples are among these, which lie in whole files."""
    for path in folder.glob(f"{bucket}/*-part-*.safetensors"):
        header = read_header(path)
        if header is not None and keys.issuperset(header["keys"]):
            path.unlink(missing_ok=True)


class Reader:
    """Tensors of one file, each read when it is asked for."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        header = read_header(path)
        if header is None:
            raise UserError(f"{path} is missing, cut off or not a file of latents; encode the clips again.")
        if key is not None and header["key"] != key:
            raise UserError(f"{path} is not the file that the index was written for; encode the clips again.")
        self.path, self.header = path, header

    def tensor(self, name: str, number: int) -> Tensor:
        """For instance ("mean", 3): fp16."""
        file, _ = _opened(self.path, self.path.stat().st_mtime_ns)
        return file.get_tensor(f"{name}/{number:06d}")

    def has(self, name: str) -> bool:
        """Whether the file has tensors of that name."""
        _, names = _opened(self.path, self.path.stat().st_mtime_ns)
        return name in names


@lru_cache(maxsize=64)
def _opened(path: Path, _changed: int) -> tuple[Any, frozenset[str]]:
    """A mapped file and the kinds of tensors in it. A dataset may have more files than a process may hold open."""
    file: Any = safe_open(path, framework="pt").__enter__()
    return file, frozenset(name.split("/")[0] for name in file.keys())  # noqa: SIM118 - no mapping


def write_dataset_index(folder: Path, index: dict[str, Any]) -> None:
    """Write `index-<fingerprint>.json`, then `index.json`, with the latent shape of each bucket as its files have it.
    An index of another dataset that is there is kept under a name of its own."""
    for bucket in index["buckets"]:
        first = Reader(folder / bucket["shards"][0][MOMENTS]["file"])
        bucket["latent_shape"] = list(first.tensor("mean", 0).shape)
    content = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    current = folder / "index.json"
    if current.is_file():
        old = current.read_bytes()
        try:
            name = json.loads(old).get("fingerprint") or f"v1-{hashlib.sha256(old).hexdigest()[:8]}"
        except (ValueError, AttributeError):
            name = None
        if name and not (folder / f"index-{name}.json").is_file():
            write_atomic(folder / f"index-{name}.json", old)
    write_atomic(folder / f"index-{index['fingerprint']}.json", content)
    write_atomic(current, content)


def check_index(folder: Path, index: Mapping[str, Any]) -> list[tuple[dict[str, Any], Reader, Reader]]:
    """(bucket, moments, texts) of every shard of an index, after checking that they belong together.

    Raises:
        UserError: a file that is missing or another one; one made with other weights, preprocessing or captions than
            the index says, which would be a stale mix; texts of other samples than the moments.
    """
    found = []
    for bucket in index["buckets"]:
        for shard in bucket["shards"]:
            readers = [Reader(folder / shard[kind]["file"], shard[kind]["key"]) for kind in (MOMENTS, TEXTS)]
            for kind, reader in zip((MOMENTS, TEXTS), readers, strict=True):
                for what, value in reader.header["made"].items():
                    if index["made"].get(what) != value:
                        raise UserError(
                            f"{reader.path} was made with another {what.replace('_', ' ')} than the rest of {folder}, "
                            "and such a mix is not trained on; encode the clips again (nothing is deleted)."
                        )
                if reader.header["kind"] != kind:
                    raise UserError(f"{reader.path} holds {reader.header['kind']}, not {kind}; encode the clips again.")
            moments, texts = readers
            strange = {about["metadata"]["captioner"] for about in texts.header["samples"]} - {*index["captions"]}
            if strange:
                raise UserError(
                    f"{texts.path} has captions of {min(strange)}, which {folder} was not made with, and such a mix is "
                    "not trained on; encode the clips again (nothing is deleted)."
                )
            samples = [[about["sample"] for about in reader.header["samples"]] for reader in readers]
            if samples[0] != samples[1]:
                raise UserError(f"{texts.path} holds texts of other samples than {moments.path}; encode them again.")
            found.append((bucket, moments, texts))
    return found


def remove_from_store(folder: Path, gone: Any) -> int:
    """Take the samples whose metadata says so out of every file of a folder, old ones too, and out of every index.
    Returns how many samples of the dataset in use went.

    A file that changes loses its key, so that encoding makes it again from what is left; one that becomes empty goes,
    and so does an index of nothing, and what runs that died left half written.
    """
    for kind in (MOMENTS, TEXTS):
        for path in folder.glob(f"*/.{kind}-*.tmp"):
            path.unlink(missing_ok=True)
    for path in folder.glob("*/left-out-*.json"):
        if any(gone({"clip": name.split("@")[0]}) for name in read_record(path)):
            path.unlink()
    empty: set[str] = set()
    changed: set[str] = set()
    removed: dict[str, int] = {}
    for path in sorted(folder.glob("*/*-*.safetensors")):
        header = read_header(path)
        if header is None:
            continue
        name = path.relative_to(folder).as_posix()
        left = [number for number, about in enumerate(header["samples"]) if not gone(about)]
        removed[name] = len(header["samples"]) - len(left)
        if not left:
            path.unlink()
            empty.add(name)
        elif removed[name]:
            reader = Reader(path)
            names = [kind for kind in ("mean", "logvar", "states", "pooled") if reader.has(kind)]
            tensors = {f"{kind}/{i:06d}": reader.tensor(kind, n) for i, n in enumerate(left) for kind in names}
            changed.add(name)
            keys = [header["keys"][n] for n in left]
            about = [header["samples"][n] for n in left]
            write_file(path, header["kind"], tensors, header["made"], keys, about)
    count = 0
    for path in sorted(folder.glob("index*.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            continue
        for bucket in index["buckets"]:
            kept = []
            for shard in bucket["shards"]:
                name = shard[MOMENTS]["file"]
                if path.name == "index.json":
                    count += removed.get(name, 0)
                shard["samples"] -= removed.get(name, 0)
                for kind in (MOMENTS, TEXTS):
                    header = read_header(folder / shard[kind]["file"])
                    shard[kind]["key"] = header["key"] if header else ""
                if name not in empty:
                    kept.append(shard)
            bucket["shards"] = kept
            bucket["samples"] = sum(shard["samples"] for shard in kept)
        index["buckets"] = [bucket for bucket in index["buckets"] if bucket["shards"]]
        index["samples"] = sum(bucket["samples"] for bucket in index["buckets"])
        index["left_out"] = [item for item in index.get("left_out", []) if not gone({"clip": item[0].split("@")[0]})]
        if index["buckets"]:
            write_atomic(path, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
        else:
            path.unlink()
    return count
