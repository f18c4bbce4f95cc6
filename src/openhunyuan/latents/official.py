"""The latent cache of the official image-to-video repository, read into a dataset of ours.

Its extraction writes, for every video, `ID.npy` — fp16 [1, 16, T, h, w], the mode, not scaled — and `json_path/ID.json`
with video_id, latent_shape, video_path, prompt and npy_save_path; its input is a list of files
{"video_path", "raw_caption": {"long caption"}}. ID is the video's file name up to its first dot. What is known to go
wrong there, and what is done about it here:

- `video_path` in the JSON is the path's first letter: the path comes from the list; without one the source is unknown.
- A video whose `.npy` is there is skipped, though its JSON may never have been written: the prompt comes from the list;
  without one the latent is left out. A prompt that was changed in the list later is taken from there.
- Two videos of one file name share an ID, and one latent is kept: which one's is not known, so it is left out.
- Errors are printed and forgotten: what the list names and the cache lacks is reported.
- Files cut off when a run died, values beyond fp16, shapes that are not what the JSON says: checked.

There is no variance in it, so latents cannot be drawn anew. Which VAE made them is not recorded; that it is the model's
is taken on trust, but for the number of channels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.sizes import LatentSize, VideoSize
from openhunyuan.curate.clip import file_sha256
from openhunyuan.latents import store
from openhunyuan.latents.captions import PromptEncoder
from openhunyuan.latents.encode import TEXTS_AT_ONCE, Encoders, encode_texts, lazily, make_index
from openhunyuan.models.vae.config import VAEConfig

REPORT = "import.json"
CAPTIONER = "official-cache"


@dataclass(frozen=True)
class Entry:
    """A latent that can be used: its file, shape [C, T, h, w], prompt and source (None: unknown)."""

    id: str
    path: Path
    shape: tuple[int, int, int, int]
    prompt: str
    source: str | None

    @property
    def size(self) -> VideoSize:
        return LatentSize(*self.shape[1:]).video


@dataclass
class OfficialCache:
    """What was found in a cache: latents to use, and (ID, what) of repairs and of what is left out."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)
    repaired: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ImportReport:
    """What an import did: samples in the dataset; (ID, what) repaired; sentences about what was left out."""

    samples: int
    repaired: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Listed:
    """An input of the extraction, from its list."""

    source: str
    prompt: str


def read_cache(cache: Path | str, meta: Path | str | None = None) -> OfficialCache:
    """What a cache holds, checked; reads every latent once.

    meta: the extraction's list of input files.

    Raises:
        UserError: no such folder, nothing of the kind in it, a list that cannot be read, or no latent that can be used.
    """
    folder = Path(cache)
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.")
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    said = {path.stem: path for path in sorted(folder.glob("json_path/*.json"))}
    if not files and not said:
        raise UserError(f"{folder} holds no ID.npy and no json_path/ID.json; it is not an official latent cache.")
    listed = _read_list(Path(meta)) if meta else {}
    found = OfficialCache(folder)
    for name in sorted({*files, *said, *listed}):
        try:
            found.entries.append(_entry(name, files.get(name), said.get(name), listed.get(name, []), found))
        except _LeftOut as reason:
            found.left_out.append((name, str(reason)))
    if not found.entries:
        name, why = found.left_out[0]
        raise UserError(f"None of the {len(found.left_out)} latents of {folder} can be used; {name} {why}.")
    return found


class _LeftOut(Exception):
    """Why a latent is not used."""


def _entry(name: str, file: Path | None, about: Path | None, listed: list[_Listed], found: OfficialCache) -> Entry:
    values = _values(about) if about else {}
    if len({one.source for one in listed}) > 1:
        raise _LeftOut(f"is the name of {len(listed)} videos of the list; which of them the latent shows is not known")
    if file is None and values.get("npy_save_path") and Path(str(values["npy_save_path"])).is_file():
        file = Path(str(values["npy_save_path"]))
    if file is None:
        raise _LeftOut("has a JSON file but no latent" if about else "is in the list and was never encoded")
    if not about and not listed:
        raise _LeftOut("has a latent but no JSON file, and no list that tells its prompt (give --meta)")
    shape = _check_latent(file)
    # An import is repaired only where it is used: the list of repairs grows after the last check.
    repairs = []
    prompt = str(values.get("prompt") or "")
    if listed and prompt != listed[0].prompt:
        repairs.append("its JSON file was lost" if not about else "its prompt is not the list's any more")
        prompt = listed[0].prompt
    if not prompt.strip():
        raise _LeftOut("has no prompt")
    source = str(values.get("video_path") or "")
    if len(source) <= 1:
        source = listed[0].source if listed else ""
        if about:
            repairs.append("of its source's path one letter was kept" + ("" if source else "; the source is unknown"))
    if about and values.get("latent_shape") != [1, *shape]:
        repairs.append(f"its JSON file says the shape is {values.get('latent_shape')}; it is {[1, *shape]}")
    found.repaired += [(name, what) for what in repairs]
    return Entry(name, file, shape, prompt, source or None)


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        raise _LeftOut("has a JSON file that cannot be read") from None
    if not isinstance(values, dict):
        raise _LeftOut("has a JSON file that holds no object")
    return values


def _check_latent(path: Path) -> tuple[int, int, int, int]:
    """The shape [C, T, h, w] of a latent file that is whole."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise _LeftOut("has a latent that is cut off or no array") from None
    if array.ndim != 5 or array.shape[0] != 1 or array.dtype.kind != "f" or 0 in array.shape:
        raise _LeftOut(f"has a latent of shape {list(array.shape)} and type {array.dtype}, not fp16 [1, C, T, h, w]")
    if not np.isfinite(array).all():
        raise _LeftOut("has a latent with values that are not finite")
    _, channels, frames, height, width = array.shape
    try:
        LatentSize(frames, height, width).video  # noqa: B018 - it checks
    except UserError as error:
        raise _LeftOut(f"has a latent that no video of the model has: {error}") from None
    return channels, frames, height, width


def _read_list(path: Path) -> dict[str, list[_Listed]]:
    """ID → the inputs that have it."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"The list {path} cannot be read ({error}).") from None
    listed: dict[str, list[_Listed]] = {}
    for line in lines:
        place = next((p for p in (Path(line), path.parent / line, path.parent / Path(line).name) if p.is_file()), None)
        if place is None:
            raise UserError(f"The list {path} names {line}, which is not there.")
        try:
            values = json.loads(place.read_text(encoding="utf-8-sig"))
            source, prompt = str(values["video_path"]), str(values["raw_caption"]["long caption"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f'{place} is no input of the extraction; it needs "video_path" and "raw_caption": {{"long caption"}}.'
            ) from None
        listed.setdefault(source.split("/")[-1].split(".")[0], []).append(_Listed(source, prompt))
    return listed


def import_cache(
    found: OfficialCache,
    output: Path | str,
    encoders: Encoders,
    config: VAEConfig,
    samples_per_shard: int = 256,
    on_sample: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Write what was found as a dataset: latents scaled, prompts encoded; files that are complete are kept.

    Raises:
        UserError: the model's VAE has another number of latent channels.
    """
    output = Path(output)
    wrong = [entry for entry in found.entries if entry.shape[0] != config.latent_channels]
    if wrong:
        raise UserError(
            f"The latents of {found.folder} have {wrong[0].shape[0]} channels, those of the model's VAE "
            f"{config.latent_channels}; choose the model they were made with."
        )
    preprocessing = {"imported": "official image-to-video cache", "scaling_factor": config.scaling_factor}
    made = {"vae": encoders.vae, "text_encoders": encoders.text, "preprocessing": preprocessing}
    buckets: dict[VideoSize, list[Entry]] = {}
    for entry in found.entries:
        buckets.setdefault(entry.size, []).append(entry)
    text = lazily(lambda: encoders.load(0).text)
    files = []
    done = 0
    for size, held in sorted(buckets.items(), key=lambda item: str(item[0])):
        for group in (held[i : i + samples_per_shard] for i in range(0, len(held), samples_per_shard)):
            files.append((size, len(group), _write(output, size, group, made, text, config.scaling_factor)))
            done += len(group)
            if on_sample:
                on_sample(done, len(found.entries))
    index = make_index(
        files,
        {**made, "captions": [CAPTIONER], "buckets": sorted(str(size) for size in buckets)},
        {CAPTIONER: len(found.entries)},
        {"model": encoders.model, "fps": None, "imported": str(found.folder)},
    )
    index["left_out"] = [list(item) for item in found.left_out]
    report = {"samples": done, "repaired": found.repaired, "left_out": found.left_out}
    write_atomic(output / REPORT, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    store.write_dataset_index(output, index)
    counts = Counter(what for _, what in found.repaired)
    problems = [f"{name} {why}" for name, why in found.left_out]
    problems += [f"{count} repaired: {what}" for what, count in counts.most_common()]
    return ImportReport(done, tuple(found.repaired), tuple(problems))


def _write(
    output: Path,
    size: VideoSize,
    group: Sequence[Entry],
    made: dict[str, Any],
    text: Callable[[], PromptEncoder],
    factor: float,
) -> dict[str, dict[str, str]]:
    """Write the two files of a shard unless they are there; what the index says of them."""
    keys = {
        store.MOMENTS: [store.key_of([entry.id, file_sha256(entry.path), made]) for entry in group],
        store.TEXTS: [store.key_of([entry.id, entry.prompt, size.is_image, made["text_encoders"]]) for entry in group],
    }
    about = {
        store.MOMENTS: [
            {"sample": e.id, "clip": e.id, "source": e.source, "fps": None, "first_frame": 0} for e in group
        ],
        store.TEXTS: [
            {"sample": e.id, "clip": e.id, "prompt": e.prompt, "metadata": {"camera": None, "captioner": CAPTIONER}}
            for e in group
        ],
    }
    makings = {
        store.MOMENTS: {what: made[what] for what in ("vae", "preprocessing")},
        store.TEXTS: {"text_encoders": made["text_encoders"]},
    }
    files = {}
    for kind in (store.MOMENTS, store.TEXTS):
        key = store.key_of(keys[kind])
        name = store.file_name(str(size), kind, key)
        files[kind] = {"file": name, "key": key}
        header = store.read_header(output / name)
        if header is not None and header["key"] == key:
            continue
        tensors: dict[str, Tensor] = {}
        if kind == store.MOMENTS:
            for i, entry in enumerate(group):
                latent = torch.from_numpy(np.load(entry.path, allow_pickle=False)[0])
                tensors[f"mean/{i:06d}"] = latent.float() * factor
        else:
            for start in range(0, len(group), TEXTS_AT_ONCE):
                rows = range(start, min(start + TEXTS_AT_ONCE, len(group)))
                prompts = [group[row].prompt for row in rows]
                data_type = "image" if size.is_image else "video"
                encode_texts(text(), prompts, list(rows), data_type, tensors)
        store.write_file(output / name, kind, tensors, makings[kind], keys[kind], about[kind])
    return files
