"""``openhunyuan evaluate``: alignment (does the video show what the prompt says) and reconstruction (the VAE alone)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, unknown
from openhunyuan.cli.generate import DEVICE_HELP
from openhunyuan.cli.parse import parse
from openhunyuan.infer.output import check_folder
from openhunyuan.infer.request import Request
from openhunyuan.models.zoo import check_model

MEASURES = {
    "alignment": "Generate for prompts of the synthetic world and measure from pixels whether each attribute is right.",
    "reconstruction": "Encode and decode held-out videos with the VAE: PSNR, and every palette colour.",
}


class AlignmentOptions(Record):
    """Generate for prompts of the synthetic world and measure from pixels whether each attribute is right."""

    model: str = Field("tiny", description="A model's name or folder.")
    split: Literal["heldout", "train"] = Field(
        "heldout", description="heldout: combinations never rendered for training; train: those that were."
    )
    num_prompts: int = Field(200, ge=1, description="Prompts with a static camera.")
    camera_prompts: int = Field(65, ge=0, description="Prompts that name a camera move; 0 for none.")
    from_image: bool = Field(
        False, description="Image-to-video: start each video from its scene's first frame, and measure that match too."
    )
    seed: int = Field(0, ge=0, description="Chooses the prompts and their noise.")
    json_path: str | None = Field(None, alias="json", description="Also write the report as JSON to this file.")
    output_dir: str | None = Field(
        None, description="Videos and reports. Default: outputs/alignment-SPLIT-SEED (or from-image-...)."
    )
    num_inference_steps: int | None = Field(None, description="Instead of the model's default.")
    true_cfg_scale: float | None = Field(None, description="Instead of the model's default.")
    flow_shift: float | None = Field(None, description="Instead of the model's default.")
    num_frames: int | None = Field(None, description="Instead of the model's default.")
    batch_size: int = Field(16, ge=1, description="Videos that share a transformer call.")
    device: str = Field("auto", description=DEVICE_HELP)


class ReconstructionOptions(Record):
    """Encode and decode held-out videos of the synthetic world with a model's VAE: PSNR, and every palette colour."""

    model: str = Field("tiny", description="A model's name or folder.")
    num_videos: int = Field(96, ge=1, description="Held-out videos.")
    seed: int = Field(0, ge=0, description="Chooses the videos.")
    json_path: str | None = Field(None, alias="json", description="Also write the report as JSON to this file.")
    output_dir: str | None = Field(None, description="Report and pictures. Default: none are written.")
    batch_size: int = Field(4, ge=1, description="Videos at a time.")
    device: str = Field("cpu", description=DEVICE_HELP)


def run(args: Sequence[str]) -> int:
    """Choose the measure and run it."""
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<14}  {text}" for name, text in MEASURES.items()]
        print("\n".join(["usage: openhunyuan evaluate MEASURE [OPTIONS]", "", "measures:", *lines]))
        return 0 if args else 2
    if args[0] not in MEASURES:
        raise UserError(unknown("measure", args[0], MEASURES))
    return {"alignment": _alignment, "reconstruction": _reconstruction}[args[0]](args[1:])


def _alignment(args: Sequence[str]) -> int:
    options = parse(AlignmentOptions, args, "openhunyuan evaluate alignment")
    changed = {
        name: getattr(options, name)
        for name in ("num_inference_steps", "true_cfg_scale", "flow_shift", "num_frames")
        if getattr(options, name) is not None
    }
    Request(prompt="checks the values", **changed)
    check_model(options.model)
    _check_files(options.json_path, options.output_dir or "outputs")

    from openhunyuan.evals.run import run_alignment

    run_alignment(
        model=options.model,
        split=options.split,
        num_prompts=options.num_prompts,
        seed=options.seed,
        json_path=options.json_path,
        output_dir=options.output_dir,
        camera_prompts=options.camera_prompts,
        batch_size=options.batch_size,
        device=options.device,
        from_image=options.from_image,
        **changed,
    )
    return 0


def _reconstruction(args: Sequence[str]) -> int:
    options = parse(ReconstructionOptions, args, "openhunyuan evaluate reconstruction")
    check_model(options.model)
    _check_files(options.json_path, options.output_dir)

    from openhunyuan.evals.reconstruction import run_reconstruction

    run_reconstruction(
        model=options.model,
        num_videos=options.num_videos,
        seed=options.seed,
        json_path=options.json_path,
        output_dir=options.output_dir,
        batch_size=options.batch_size,
        device=options.device,
    )
    return 0


def _check_files(json_path: str | None, output_dir: str | None) -> None:
    if json_path is not None:
        if Path(json_path).is_dir():
            raise UserError(f"--json {json_path} is a folder; give a file name in it.")
        check_folder(Path(json_path).parent)
    if output_dir is not None:
        check_folder(Path(output_dir))
