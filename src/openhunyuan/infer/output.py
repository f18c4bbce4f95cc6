"""Files of a generation: names, the checks before any work, and writing with the request inside and beside.

Names. The JSON beside ``out.mp4`` is ``out.json``; where that name is taken (by ``out.png``'s, say) it is
``out.mp4.json``; the preview is ``out.preview.mp4``. Without an output path a new name is made in the output folder
from the prompt and the seed: lower-case ASCII letters, digits and dashes, so that every file system takes it. It never
meets an existing file. A given path is used as it is, and replaces only a file that this package wrote (one that
carries a request), never anything else. Several videos of one request get ``-<seed>`` before the suffix.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.video import read_metadata, write_image, write_video
from openhunyuan.infer.request import IMAGE_SUFFIX, VIDEO_SUFFIX, Request

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from openhunyuan.infer.pipeline import Pipeline, Progress
    from openhunyuan.models.load import LoadedModel

MADE_BY = "made_by"
_LATENTS = "latents"
_MAX_NAME_BYTES = 255

_log = get_logger("output")


def output_paths(request: Request) -> list[Path]:
    """The file of each video of a resolved request. Makes and opens nothing."""
    suffix = IMAGE_SUFFIX if request.size.is_image else VIDEO_SUFFIX
    if request.output_path is None:
        stem = slug(request.prompt)
        return [unused_path(Path(request.output_dir) / f"{stem}-seed{seed}{suffix}") for seed in request.seeds]
    path = Path(request.output_path)
    if request.num_videos == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{seed}{path.suffix}") for seed in request.seeds]


def slug(prompt: str) -> str:
    """A name made of a prompt: at most 60 of a-z, 0-9 and dashes; accents are dropped, other scripts give "video".

    A name that Windows keeps for a device (con, aux, com1, ...) gets the same treatment.
    """
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    stem = "-".join(re.findall(r"[a-z0-9]+", plain))[:60].strip("-")
    return "video" if not stem or re.fullmatch(r"con|prn|aux|nul|(com|lpt)[0-9]", stem) else stem


def unused_path(path: Path) -> Path:
    """``path``, or the first of ``name-2``, ``name-3``, ... that does not exist."""
    candidate, count = path, 2
    while candidate.exists() or candidate.with_suffix(".json").exists():
        candidate, count = path.with_name(f"{path.stem}-{count}{path.suffix}"), count + 1
    return candidate


def sidecar_path(path: Path) -> Path:
    """Where the JSON of ``path`` goes: out.json, or out.mp4.json if out.json belongs to something else."""
    for candidate in (path.with_suffix(".json"), path.with_name(f"{path.name}.json")):
        if not candidate.exists() or _is_sidecar(candidate, path):
            return candidate
    raise UserError(f"{candidate} would be replaced and was not made by openhunyuan; choose another output name.")


def _is_sidecar(sidecar: Path, path: Path) -> bool:
    """Whether ``sidecar`` is what this package wrote beside ``path``, or beside a file that is gone."""
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(values, dict) or MADE_BY not in values:
        return False
    owner = path.with_name(Path(str(values.get("output_path"))).name)
    return owner == path or not owner.exists()


def latents_path(path: Path) -> Path:
    """out.mp4 -> out.latents.safetensors."""
    return path.with_suffix(".latents.safetensors")


def preview_path(path: Path) -> Path:
    """out.mp4 -> out.preview.mp4."""
    return path.with_name(f"{path.stem}.preview{path.suffix}")


def check_output(path: Path, preview: bool = False) -> None:
    """Raise ``UserError`` if ``path`` (or its preview) cannot or must not be written. Leaves nothing behind.

    Done before any model is loaded: minutes of work must not end at a read-only folder.
    """
    longest = len(latents_path(path).name.encode())
    if longest > _MAX_NAME_BYTES:
        raise UserError(
            f"The output name {path.name} is too long: with what is written beside it, it takes {longest} bytes, "
            f"and file systems allow {_MAX_NAME_BYTES}; choose a shorter one."
        )
    if preview:
        check_output(preview_path(path))
    if path.is_dir():
        raise UserError(f"The output path {path} is a folder; give a file name in it.")
    if path.exists():
        try:
            read_metadata(path)
        except UserError:
            raise UserError(f"{path} exists and was not made by openhunyuan; move it or choose another name.") from None
    sidecar_path(path)
    check_folder(path.parent)


def check_folder(wanted: Path) -> None:
    """Raise ``UserError`` if files cannot be made in ``wanted`` (which may not exist yet). Leaves nothing behind."""
    folder = wanted
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"The output folder {wanted} cannot be made: {folder} is a file.")
    try:
        # Permission bits do not tell for root, read-only mounts or /proc; trying does. The file is gone at once.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"The output folder {wanted} cannot be written ({error.strerror}); choose another place."
        ) from None


def metadata_of(request: Request, model: LoadedModel) -> dict[str, Any]:
    """What a file says of itself: the resolved request's fields, and under ``made_by`` what computed it."""
    import torch

    return {
        **request.model_dump(mode="json"),
        MADE_BY: {
            "openhunyuan": package_version(),
            "torch": str(torch.__version__),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quant": "fp8" if model.float8 else "none",
            "text_precision": model.text_precision or "auto",
            "weights": model.spec.sha256,
        },
    }


def package_version() -> str:
    """The installed version, or "unknown" when run from a source tree that is not installed."""
    try:
        return version("openhunyuan")
    except PackageNotFoundError:
        return "unknown"


def read_request(path: Path) -> tuple[Request, dict[str, Any]]:
    """The request inside a generated file, and its ``made_by``. Raises ``UserError`` when there is none."""
    if path.name.endswith(".safetensors"):
        from openhunyuan.base.weights import read_weights_metadata

        try:
            values = json.loads(read_weights_metadata(path).get("request", ""))
        except ValueError:
            raise UserError(f"{path} carries no request; only latents that `generate` saved can be decoded.") from None
    else:
        values = read_metadata(path)
    made_by = values.pop(MADE_BY, {})
    try:
        return Request(**values), dict(made_by)
    except UserError as error:
        raise UserError(f"{path} carries a request that cannot be used: {error}") from None


def write_output(path: Path, frames: np.ndarray, request: Request, metadata: dict[str, Any]) -> None:
    """Write frames [T, H, W, 3] as ``path`` with the metadata inside, and the same JSON beside it."""
    if path.suffix.lower() == IMAGE_SUFFIX:
        write_image(path, frames, metadata)
    else:
        assert request.fps is not None
        write_video(path, frames, request.fps, metadata)
    sidecar_path(path).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_latents(path: Path, latents: Tensor, metadata: dict[str, Any]) -> None:
    """Save the latents [1, C, t, h, w] of one video with its request, so that decoding can be done again."""
    from openhunyuan.base.weights import save_safetensors

    save_safetensors(path, {_LATENTS: latents}, {"request": json.dumps(metadata)})


def load_latents(path: Path) -> Tensor:
    """The latents that ``save_latents`` wrote."""
    from openhunyuan.base.weights import load_safetensors

    state = load_safetensors(path)
    if set(state) != {_LATENTS}:
        raise UserError(f"{path} is not a latents file that `generate` saved.")
    return state[_LATENTS]


def generate_files(
    pipe: Pipeline,
    request: Request,
    paths: list[Path],
    progress: Callable[[int], Progress] | None = None,
    decoding: Callable[[int], None] | None = None,
) -> Iterator[Path]:
    """Make and write the videos of a resolved request, one file each; yields each path when its file is there.

    The latents of a video are on disk before it is decoded and are removed when its file is there: running out of
    memory in the decoder does not lose the denoising. The error then names the file to go on from.

    Args:
        progress: video index -> callback of the denoising steps.
        decoding: called with the video index when its denoising is done.
    """
    from openhunyuan.infer.preview import Preview

    for index, path in enumerate(paths):
        # What is stored in a file makes that file alone, wherever it lies.
        single = request.one(index).replace(output_path=str(path))
        metadata = metadata_of(single, pipe.model)
        preview = Preview(pipe.model.vae, preview_path(path), single) if single.preview else None
        latents = pipe.sample(single, progress(index) if progress else None, preview)
        metadata[MADE_BY] |= pipe.record
        kept = latents_path(path)
        save_latents(kept, latents, metadata)
        if decoding:
            decoding(index)
        try:
            write_output(path, pipe.decode(latents, single)[0], single, metadata)
        except BaseException:
            _log.error("Decoding did not finish; the latents are kept: openhunyuan replay %s", kept)
            raise
        kept.unlink()
        yield path
