"""``openhunyuan encode``: the captioned clips of a data folder as latents; tar files out; official latents in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from openhunyuan.base.device import pick_device
from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar

if TYPE_CHECKING:
    import torch

    from openhunyuan.base.sizes import VideoSize
    from openhunyuan.latents.encode import Encoders, Networks
    from openhunyuan.models.load import LoadedModel

PROG = "openhunyuan encode"

SHORTEST = 9
"""Frames of the shortest samples that are made without being asked for."""


class EncodeOptions(Record):
    """Encode captioned clips with a model's VAE and text encoders; goes on where it stopped.

    Size and rate are the model's own unless given; of a shorter clip a shorter sample is made. Clips that are too short
    for any or have no caption are left out; the index names the short ones. What is encoded again with other settings
    goes beside what is there.

    openhunyuan encode export DATA --output DIR writes the latents as tar files (WebDataset); openhunyuan encode import
    CACHE --output DIR reads the latent cache that the official image-to-video repository writes.
    """

    data: str = Field(description="A folder that `openhunyuan curate` and `openhunyuan caption` made.")
    model: str = Field("tiny", description="Model by name or folder: the one that will be trained.")
    vae: str | None = Field(
        None, description="Folder of another VAE, such as runs/vae-tiling/vae; default: the model's."
    )
    set: str | None = Field(
        None, description="Encode one set only: 256p, 360p, …, sft (what people let pass); default: every kept clip."
    )
    output: str | None = Field(
        None, description="Folder of the latents; default: DATA/latents, or DATA/latents-SET for one set."
    )
    bucket: tuple[str, ...] = Field(
        (),
        description="A size of samples: 33x256x448 (frames, height, width), or 33x256p for all aspect ratios about as "
        "large as 256x256; may be repeated. Each clip takes the largest and longest that it fills, in its own shape.",
    )
    num_frames: int | None = Field(
        None,
        description="Without --bucket: frames of a sample, 4n+1; default: the model's, or for shorter clips a half, a "
        "quarter and so on of it, down to 9.",
    )
    height: int | None = Field(None, description="Without --bucket: height, a multiple of 16; default: the model's.")
    width: int | None = Field(None, description="Without --bucket: width, a multiple of 16; default: the model's.")
    fps: float | None = Field(None, gt=0, description="Frames a second that a clip is read at; default: the model's.")
    captioner: str | None = Field(
        None, description="Use this captioner's captions (NAME or NAME@VERSION); default: the newest of each clip."
    )
    tiled: bool = Field(False, description="Encode tile by tile, for samples too large for the memory.")
    samples_per_shard: int = Field(256, ge=1, description="Samples in one file, at most.")
    workers: int = Field(0, ge=0, description="Processes that encode, each with the model; 0 = none but this one.")
    part: str = Field("1/1", description="N/OF: only every OF-th file, beginning with the N-th, of several such runs.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.")


class ExportOptions(Record):
    """Write a latent dataset as uncompressed tar files that the webdataset library reads; goes on where it stopped."""

    data: str = Field(description="A folder with latents, or a latent dataset itself.")
    output: str = Field(description="Folder of the tar files.")
    clips: bool = Field(False, description="Put the clips' mp4 files in as well.")
    samples_per_tar: int = Field(1000, ge=1, description="Samples in one tar file.")


class ImportOptions(Record):
    """Read the latent cache of the official image-to-video repository (ID.npy and json_path/ID.json) into a dataset.

    Its latents are checked and scaled, its prompts encoded with the model's text encoders. What its known faults
    damaged is repaired where that is possible, and otherwise left out and named in OUTPUT/import.json.
    """

    cache: str = Field(description="The output folder of the official extraction.")
    output: str = Field(description="Folder of the dataset.")
    meta: str | None = Field(
        None, description="The official list of input files (meta_file.list); finds what was lost or is ambiguous."
    )
    model: str = Field("tiny", description="Model by name or folder: the one that will be trained.")
    samples_per_shard: int = Field(256, ge=1, description="Samples in one file.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.")


def run(args: Sequence[str]) -> int:
    """Encode and print the folder, or one of the two smaller jobs."""
    if args and args[0] == "export":
        return _export(parse(ExportOptions, args[1:], f"{PROG} export", positional=("data",)))
    if args and args[0] == "import":
        return _import(parse(ImportOptions, args[1:], f"{PROG} import", positional=("cache",)))
    options = parse(EncodeOptions, args, PROG, positional=("data",))

    from openhunyuan.curate.review import KEPT, members
    from openhunyuan.curate.run import read_clips
    from openhunyuan.infer.output import check_folder

    part = _part(options.part)
    if options.bucket and (options.num_frames or options.height or options.width):
        raise UserError("--bucket says frames, height and width; leave --num-frames, --height and --width out.")
    kept = members(options.data, read_clips(options.data), options.set or KEPT)
    if kept and all(clip.kind == "image" for clip in kept) and not options.bucket and options.num_frames is None:
        options = options.model_copy(update={"num_frames": 1})
    name = f"latents-{options.set}" if options.set else "latents"
    output = Path(options.output) if options.output else Path(options.data) / name

    captioned = [clip for clip in kept if clip.captions_of(options.captioner)]
    if not captioned:
        by = f" by {options.captioner}" if options.captioner else ""
        raise UserError(
            f"No clip of {options.data} has a caption{by}; make them with: openhunyuan caption {options.data}."
        )
    _check_apart(output, options.data)
    check_folder(output)

    from openhunyuan.latents.buckets import parse_buckets
    from openhunyuan.latents.encode import encode_clips, plan_samples
    from openhunyuan.models.load import load_model
    from openhunyuan.models.zoo import check_model

    asked = parse_buckets(options.bucket)
    check_model(options.model)
    device = pick_device(options.device)
    model = load_model(options.model, device=device)
    if options.vae:
        model = model.with_vae(Path(options.vae))
    sizes = asked or _sizes(options, model)
    fps = options.fps or model.spec.defaults.fps
    out = console(stderr=True)
    unplaced = sum(sample.unplaced for sample in plan_samples(captioned, sizes, fps, options.captioner)[0])
    if unplaced:
        out.print(
            f"{count(unplaced, 'sample')} without the camera label of the whole caption, since it is not known what "
            f"that was decided from; openhunyuan caption {options.data}, with the options of before, adds what was "
            "measured.",
            markup=False,
            soft_wrap=True,
        )
    with step_bar() as show:
        report = encode_clips(
            captioned,
            options.data,
            output,
            _encoders(model, device, options),
            sizes,
            fps=fps,
            samples_per_shard=options.samples_per_shard,
            captioner=options.captioner,
            workers=options.workers,
            part=part,
            on_sample=lambda done, total: show("latents", done, total),
        )
    shards = count(report.written + report.skipped + report.missing, "shard")
    out.print(f"{count(report.samples, 'sample')} in {shards}, {report.written} written now")
    short = len(report.left_out) - len(report.failed)
    shortest = min(size.num_frames for size in sizes)
    too_short = f"too short for {count(shortest, 'frame')}; {'--bucket' if asked else '--num-frames'} may ask for fewer"
    for number, why in ((short, too_short), (len(kept) - len(captioned), "without a caption")):
        if number:
            out.print(f"{number} of {count(len(kept), 'clip')} left out: {why}", soft_wrap=True)
    if report.failed:
        out.print(f"{count(len(report.failed), 'sample')} left out, to be tried again by the next run:")
    for name, why in report.failed[:10]:
        out.print(f"  {name} {why}", markup=False, soft_wrap=True)
    if len(report.failed) > 10:
        out.print(f"  and {len(report.failed) - 10} more in the index")
    if report.missing:
        are = "is" if report.missing == 1 else "are"
        out.print(f"{count(report.missing, 'shard')} {are} other parts' work; the index appears with the last")
    print(output)
    return 0


def count(number: int, what: str) -> str:
    """As "1 sample" and "2 samples"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part is '{text}', but it must be N/OF with N from 1 to OF, as 2/8.")
    return int(match[1]), int(match[2])


def _check_apart(output: Path | str, source: Path | str) -> None:
    if Path(output).resolve() == Path(source).resolve():
        raise UserError(f"--output {output} is the folder that is read; choose another one, such as {output}/latents.")


def _encoders(model: LoadedModel, device: torch.device, options: EncodeOptions | None = None) -> Encoders:
    """The model's VAE and text encoders: in this process, or loaded again in each of several."""
    from openhunyuan.latents.encode import Encoders, Networks

    tiling = None
    if options and options.tiled:
        from openhunyuan.models.vae.tiling import TilingConfig

        tiling = TilingConfig()

    def here(_number: int) -> Networks:
        return Networks(model.vae, model.text, device)

    load = partial(_load, options.model, options.vae, str(device)) if options and options.workers else here
    return Encoders(load, model.vae_name(), model.text_name(), model.weights_name(), tiling)


def _load(name: str, vae: str | None, device: str, number: int) -> Networks:
    """The networks of one of several processes; with several GPUs they take turns."""
    import torch

    from openhunyuan.latents.encode import Networks
    from openhunyuan.models.load import load_model

    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    model = load_model(name, device=torch.device(device))
    if vae:
        model = model.with_vae(Path(vae))
    return Networks(model.vae, model.text, torch.device(device))


def _sizes(options: EncodeOptions, model: LoadedModel) -> tuple[VideoSize, ...]:
    """Sizes of samples: as asked for, else the model's own, and half of its length and so on, for clips that are
    shorter."""
    from openhunyuan.base.sizes import VideoSize

    own = model.spec.defaults
    frames = [options.num_frames or own.num_frames]
    while options.num_frames is None and (half := (frames[-1] - 1) // 8 * 4 + 1) >= SHORTEST:
        frames.append(half)
    return tuple(VideoSize(n, options.height or own.height, options.width or own.width) for n in frames)


def _export(options: ExportOptions) -> int:
    from openhunyuan.latents.tars import export_tars
    from openhunyuan.recipes.own_data import check_latents

    _check_apart(options.output, options.data)
    folder = Path(options.data)
    latents = folder if (folder / "index.json").is_file() else check_latents(folder)
    with step_bar() as show:
        report = export_tars(
            latents,
            Path(options.output),
            options.samples_per_tar,
            clips=latents.parent if options.clips else None,
            on_sample=lambda done, total: show("samples", done, total),
        )
    said = f"{count(report.samples, 'sample')} in {count(report.tars, 'tar file')}, {report.written} written now"
    console(stderr=True).print(said)
    print(options.output)
    return 0


def _import(options: ImportOptions) -> int:
    from openhunyuan.infer.output import check_folder
    from openhunyuan.latents.official import read_cache
    from openhunyuan.models.load import load_model
    from openhunyuan.models.zoo import check_model

    _check_apart(options.output, options.cache)
    found = read_cache(options.cache, options.meta)
    check_folder(Path(options.output))
    check_model(options.model)
    device = pick_device(options.device)
    model = load_model(options.model, device=device)

    from openhunyuan.latents.official import import_cache

    encoders = _encoders(model, device)
    with step_bar() as show:
        report = import_cache(
            found,
            Path(options.output),
            encoders,
            model.vae.config,
            options.samples_per_shard,
            lambda done, total: show("latents", done, total),
        )
    out = console(stderr=True)
    out.print(f"{count(report.samples, 'latent')} read, {len(report.repaired)} of them repaired")
    for said in report.problems[:10]:
        out.print(f"  {said}", markup=False)
    if len(report.problems) > 10:
        out.print(f"  and {len(report.problems) - 10} more in import.json")
    print(options.output)
    return 0
