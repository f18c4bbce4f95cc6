"""Latent datasets as uncompressed tar files in the layout that the webdataset library reads.

A tar holds samples of one bucket; a sample is the members with one name up to the first dot:

    <clip>.mean.npy    fp16 [C, T, h, w], scaled     <clip>.states.npy  fp16 [S, D], without padding
    <clip>.logvar.npy  fp16 [C, T, h, w]             <clip>.pooled.npy  fp16 [P]
    <clip>.txt         the prompt                    <clip>.json        all that is known of it
    <clip>.mp4         the clip, if asked for

`index.json` beside them lists the tars by bucket with the byte offset of every sample, so that a file can also be read
from its middle. The same dataset gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.sizes import LatentSize
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.run import read_clips
from openhunyuan.latents.shards import LatentSample, ShardDataset
from openhunyuan.latents.store import key_of

FORMAT = "openhunyuan-tars-1"
INDEX = "index.json"
_TAR = re.compile(r"\d+x\d+x\d+-\d{6}-[0-9a-f]{8}\.tar")
_HALF_WRITTEN = re.compile(rf"\.{_TAR.pattern}\.\d+\.tmp")


@dataclass(frozen=True)
class TarReport:
    """What a run did."""

    samples: int
    tars: int
    written: int


def export_tars(
    latents: Path | str,
    output: Path | str,
    samples_per_tar: int = 1000,
    clips: Path | None = None,
    on_sample: Callable[[int, int], None] | None = None,
) -> TarReport:
    """Write a latent dataset as tar files; those that are there already are kept.

    clips: a data folder, whose mp4 files go in as well.

    Raises:
        UserError: `output` holds tars that are not of this export, or is the dataset's own folder; a clip's file is not
            there.
    """
    output = Path(output)
    dataset = ShardDataset(latents)
    if (output / INDEX).is_file():
        made = json.loads((output / INDEX).read_text(encoding="utf-8"))
        if made.get("format") != FORMAT:
            raise UserError(f"{output} holds an {INDEX} that is no export's; choose another folder.")
    films = {clip.id: clip for clip in read_clips(clips)} if clips else {}
    origin = key_of([dataset.index, bool(clips)])
    planned: list[tuple[str, str, list[int]]] = []
    for shape, rows in dataset.buckets().items():
        bucket = str(LatentSize(shape[1], shape[2], shape[3]).video)
        for number, first in enumerate(range(0, len(rows), samples_per_tar)):
            group = rows[first : first + samples_per_tar]
            planned.append((f"{bucket}-{number:06d}-{key_of([origin, group])[:8]}.tar", bucket, group))
    strange = {path.name for path in output.glob("*.tar")} - {name for name, _, _ in planned}
    if strange:
        raise UserError(
            f"{output} holds {min(strange)}, which is not of this export, and who reads *.tar would mix the two; "
            "choose another folder, or delete the old tars, which are copies."
        )
    tars: list[dict[str, Any]] = []
    done = written = 0
    for name, bucket, group in planned:
        if not (output / name).is_file():
            output.mkdir(parents=True, exist_ok=True)
            _write_tar(output / name, (m for row in group for m in _members(row, dataset[row], films, clips)))
            written += 1
        offsets = sample_offsets(output / name)
        if len(offsets) != len(group):
            raise UserError(f"{output / name} is not whole; delete it and export again.")
        tars.append(_entry(output / name, bucket, offsets))
        done += len(group)
        if on_sample:
            on_sample(done, len(dataset))
    index = {"format": FORMAT, "samples": len(dataset), "made": dataset.made, "tars": tars}
    write_atomic(output / INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
    return TarReport(len(dataset), len(tars), written)


def _entry(path: Path, bucket: str, offsets: dict[str, int]) -> dict[str, Any]:
    """What the index says of a tar."""
    size = path.stat().st_size
    return {"file": path.name, "bucket": bucket, "samples": len(offsets), "bytes": size, "offsets": offsets}


def remove_from_tars(folder: Path, gone: Callable[[dict[str, Any]], bool]) -> int:
    """Take the samples whose metadata says so out of the tars of a folder, those of an export that died too; returns
    how many went. A tar that changes keeps its name; one that becomes empty goes, and so does an index of none.
    """
    removed = 0
    for path in sorted(folder.iterdir()):
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink()
        elif _TAR.fullmatch(path.name):
            removed += _remove_from_tar(path, gone)
    _mend_index(folder / INDEX)
    return removed


def _remove_from_tar(path: Path, gone: Callable[[dict[str, Any]], bool]) -> int:
    offsets = sample_offsets(path)
    with tarfile.open(path, "r:") as tar:
        names = {
            member.name.split(".", 1)[0]
            for member in tar
            if member.name.endswith(".json") and gone(json.loads(_content(tar, member)))
        }
        if names and len(names) < len(offsets):
            left = (member for member in tar if member.name.split(".", 1)[0] not in names)
            _write_tar(path, ((member.name, _content(tar, member)) for member in left))
    if len(names) == len(offsets):
        path.unlink()
    return len(names)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _mend_index(path: Path) -> None:
    """Make the index of an export say what its tars hold."""
    index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if index.get("format") != FORMAT:
        return
    held = [(path.parent / tar["file"], tar["bucket"]) for tar in index["tars"]]
    tars = [_entry(file, bucket, sample_offsets(file)) for file, bucket in held if file.is_file()]
    index |= {"tars": tars, "samples": sum(tar["samples"] for tar in tars)}
    if tars:
        write_atomic(path, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
    else:
        path.unlink()


def sample_offsets(path: Path) -> dict[str, int]:
    """Sample → where its first member begins in a tar, in bytes. Reads the members' headers only."""
    offsets: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                offsets.setdefault(member.name.split(".", 1)[0], member.offset)
    except tarfile.TarError as error:
        raise UserError(f"{path} cannot be read as a tar file ({error}); delete it and export again.") from None
    return offsets


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, content in members:
                    member = tarfile.TarInfo(name)  # no times, no owners: the same samples give the same bytes
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _members(row: int, sample: LatentSample, films: dict[str, Clip], clips: Path | None) -> Iterator[tuple[str, bytes]]:
    # The number keeps names apart where two samples are of one clip; a dot would end the sample's name.
    name = f"{row:09d}-{str(sample.metadata.get('sample', sample.metadata.get('clip', 'sample'))).replace('.', '_')}"
    tensors = {"mean": sample.latents, "logvar": sample.logvar, "states": sample.states, "pooled": sample.pooled}
    for kind, tensor in tensors.items():
        if tensor is not None:
            buffer = io.BytesIO()
            np.save(buffer, tensor.half().numpy(), allow_pickle=False)
            yield f"{name}.{kind}.npy", buffer.getvalue()
    yield f"{name}.txt", sample.prompt.encode()
    about = {**sample.metadata, "prompt": sample.prompt}
    yield f"{name}.json", json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
    if clips:
        clip = films.get(str(sample.metadata.get("clip")))
        if clip is None or clip.path is None or not (clips / clip.path).is_file():
            raise UserError(f"The mp4 of {name} is not in {clips}; export without --clips, or curate again.")
        yield f"{name}.mp4", (clips / clip.path).read_bytes()
