"""Making files with a progress bar: shared by ``generate`` and ``replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openhunyuan.base.log import console

if TYPE_CHECKING:
    from openhunyuan.infer.pipeline import Pipeline, Progress
    from openhunyuan.infer.request import Request


def make_files(pipe: Pipeline, request: Request, paths: list[Path]) -> None:
    """Generate a resolved request's files: a bar over the steps on stderr, the paths of finished files on stdout."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from openhunyuan.infer.output import generate_files

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    finished: list[Path] = []
    try:
        # stdout is not redirected and is written after the bar: it is the result, and may be a pipe.
        with Bar(*columns, console=console(stderr=True), redirect_stdout=False) as bar:
            task = bar.add_task("Reading the prompt", total=request.num_inference_steps)

            def name(what: str, index: int) -> str:
                return what if len(paths) == 1 else f"{what} {index + 1}/{len(paths)}"

            def steps(index: int) -> Progress:
                bar.reset(task, total=request.num_inference_steps, description=name("Reading the prompt", index))

                def step(done: int, total: int, latents: object) -> None:
                    bar.update(task, completed=done, total=total, description=name("Denoising", index))

                return step

            for index, path in enumerate(
                generate_files(pipe, request, paths, steps, lambda i: bar.update(task, description=name("Decoding", i)))
            ):
                bar.update(task, description=name("Done", index))
                finished.append(path)
    finally:
        for path in finished:
            print(path, flush=True)
