"""Progress bars on stderr: files being made (``generate``, ``replay``), and the steps of a longer job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def step_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step of a job; the value is called with (step, done, in all) and shows it."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console(stderr=True), redirect_stdout=False) as bar:
        tasks = {}

        def show(step: str, done: int, total: int) -> None:
            if total and step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            if total:
                bar.update(tasks[step], completed=done, total=total)

        yield show
