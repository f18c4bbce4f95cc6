"""Many prompts from one file, with one model: rows, which of them are done already, and making the rest.

A file is ``.txt`` (a prompt a line), ``.csv`` (a column ``prompt``; other columns are fields of the request) or
``.jsonl`` (an object a line). What a row leaves out, or leaves empty, is as on the command line. A row that cannot be
made does not end the others.

Interrupted, the same command goes on: a row is done when a file of its name holds the same request, made with the same
weights. A row without a seed is done whatever seed its file has.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import unknown
from openhunyuan.infer.output import check_output, read_request, slug
from openhunyuan.infer.request import IMAGE_SUFFIX, VIDEO_SUFFIX, Request
from openhunyuan.models.zoo import ModelSpec

SUFFIXES = (".txt", ".csv", ".jsonl")
WHOLE_RUN = ("model", "rewritten")
"""Fields of a request that a row cannot have: they belong to the run."""
_log = get_logger("batch")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: its line in the file, from 1.
        request: what it asks for, or None when that cannot be.
        error: why it cannot be.
    """

    line: int
    request: Request | None
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """One video of a row.

    Attributes:
        line: the row's line in the file.
        request: resolved, of one video, with its output path; None when the row cannot be made.
        status: what is to be done, or was: open, made, skipped (it was there), failed.
        error: why it failed.
        seconds: how long it took.
    """

    line: int
    request: Request | None
    status: Literal["open", "made", "skipped", "failed"] = "open"
    error: str | None = None
    seconds: float = 0.0

    @property
    def path(self) -> Path | None:
        """The file, if the row can be made."""
        return Path(self.request.output_path) if self.request and self.request.output_path else None

    def with_request(self, request: Request) -> Job:
        """The same job with another request."""
        return dataclasses.replace(self, request=request)

    def failed(self, error: str, seconds: float = 0.0) -> Job:
        """The same job, failed."""
        return dataclasses.replace(self, status="failed", error=error, seconds=seconds)


def read_rows(path: Path, common: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a file of prompts.

    Args:
        path: a .txt, .csv or .jsonl file in UTF-8.
        common: fields of ``Request`` that hold for every row that does not say otherwise.
        names: other names of fields that a file may use -> the field.

    Raises:
        UserError: the file is missing, of another kind, not text, has no row or a column that is no field.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"The file of prompts is {path}, but it must end in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The file of prompts {path} does not exist.") from None
    except UnicodeDecodeError:
        raise UserError(f"The file of prompts {path} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"The file of prompts {path} cannot be read ({error.strerror}).") from None
    read = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}[path.suffix.lower()]
    rows = [_row(line, values, common) for line, values in read(text, path, names or {})]
    if not rows:
        raise UserError(f"The file of prompts {path} has no row.")
    return rows


Values = Iterable[tuple[int, dict[str, Any] | str]]
"""(line, what it says, or why it cannot be read)."""


def _read_txt(text: str, _path: Path, _names: Mapping[str, str]) -> Values:
    for line, prompt in enumerate(text.splitlines(), 1):
        if prompt.strip():
            yield line, {"prompt": prompt.strip()}


def _read_csv(text: str, path: Path, names: Mapping[str, str]) -> Values:
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    # Spreadsheets of some languages separate with semicolons.
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [_field(name, names) for name in next(reader, [])]
        if "prompt" not in columns:
            raise UserError(f"{path} has no column prompt; its first line must name the columns.")
        for name in columns:
            if name not in Request.model_fields or name in WHOLE_RUN:
                raise UserError(f"{path}: {_no_field(name)}")
        for values in reader:
            # A quoted text may span lines: this is the last of the row's.
            line = reader.line_num
            if not any(value.strip() for value in values):
                continue
            if len(values) > len(columns):
                counts = f"it has {len(values)} values for {len(columns)} columns"
                yield line, f"{counts}; put quotes around a text with '{delimiter}' in it"
                continue
            yield line, {name: value for name, value in zip(columns, values, strict=False) if value.strip()}
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}, line {reader.line_num}).") from None


def _read_jsonl(text: str, _path: Path, names: Mapping[str, str]) -> Values:
    # Not splitlines: JSON texts may hold other line separators than the newline.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except ValueError as error:
            yield line, f"it is not JSON ({error})"
            continue
        if isinstance(values, str):
            values = {"prompt": values}
        if not isinstance(values, dict):
            yield line, "it is neither a JSON object nor a text"
            continue
        yield line, {_field(name, names): value for name, value in values.items() if value is not None}


def _field(name: str, names: Mapping[str, str]) -> str:
    plain = name.strip().lstrip("-").replace("-", "_").lower()
    return names.get(plain, plain)


def _no_field(name: str) -> str:
    if name in WHOLE_RUN:
        return f"{name} cannot be set in a row: one run has one."
    return unknown("field", name, [field for field in Request.model_fields if field not in WHOLE_RUN])


def _row(line: int, values: dict[str, Any] | str, common: Mapping[str, Any]) -> Row:
    if isinstance(values, str):
        return Row(line, None, f"Line {line} cannot be used: {values}.")
    try:
        for name in values:
            if name not in Request.model_fields or name in WHOLE_RUN:
                raise UserError(_no_field(name))
        return Row(line, Request(**{**common, **values}))
    except UserError as error:
        return Row(line, None, str(error))


def plan(rows: Sequence[Row], spec: ModelSpec) -> list[Job]:
    """What is to be done for each video of the rows: names chosen, done ones found, impossible ones marked.

    Names that are not given are made from the prompt, and are the same in every run; each belongs to one row.

    Args:
        rows: what ``read_rows`` gave.
        spec: the model, for what rows leave open and for its weights' hashes.
    """
    jobs: list[Job] = []
    taken: dict[Path, int] = {}
    for row in rows:
        if row.request is None:
            jobs.append(Job(row.line, None, "failed", row.error))
            continue
        for index in range(row.request.num_videos):
            jobs.append(_job(row.line, row.request, index, spec, taken))
    return jobs


def _job(line: int, request: Request, index: int, spec: ModelSpec, taken: dict[Path, int]) -> Job:
    try:
        seed = None if request.seed is None else request.seed + index
        wanted = _Wanted(request.replace(seed=seed, num_videos=1), spec)
        resolved = wanted.resolved
        if request.output_path is None:
            path, done = _own_name(wanted, taken)
        else:
            path = Path(request.output_path)
            if request.num_videos > 1:
                path = path.with_name(f"{path.stem}-{index + 1 if seed is None else seed}{path.suffix}")
            if path.resolve() in taken:
                raise UserError(f"{path} is already what line {taken[path.resolve()]} writes; give another name.")
            done = wanted.is_done(path)
        taken[path.resolve()] = line
        single = resolved.replace(output_path=str(path))
        if not done:
            check_output(path, single.preview)
    except UserError as error:
        return Job(line, None, "failed", str(error))
    return Job(line, single, "skipped" if done else "open")


def _own_name(wanted: _Wanted, taken: Mapping[Path, int]) -> tuple[Path, bool]:
    """The first name for this request that no other row has and that is free, or holds this very request (True)."""
    request = wanted.resolved
    stem = slug(request.prompt) + ("" if wanted.asked.seed is None else f"-seed{wanted.asked.seed}")
    suffix = IMAGE_SUFFIX if request.size.is_image else VIDEO_SUFFIX
    count = 1
    while True:
        path = Path(request.output_dir) / (f"{stem}{suffix}" if count == 1 else f"{stem}-{count}{suffix}")
        count += 1
        if path.resolve() in taken:
            continue
        if wanted.is_done(path):
            return path, True
        if not path.exists() and not path.with_suffix(".json").exists():
            return path, False


class _Wanted:
    """One video of a row, to be recognised in a file.

    Attributes:
        asked: what the row says, for one video.
        resolved: the same with the model's defaults.
    """

    def __init__(self, asked: Request, spec: ModelSpec) -> None:
        self.asked = asked
        self.resolved = asked.resolve(spec.defaults)
        self._weights = spec.sha256
        # Where a video goes does not change it; what is left open, the pipeline decides by more than the defaults.
        ignored = {"output_path", "output_dir", "preview", "num_videos", "rewritten"}
        if asked.seed is None:
            ignored.add("seed")
        if asked.image is not None and (asked.i2v_resolution or asked.height is None):
            ignored |= {"height", "width"}
        if asked.negative_prompt is None and not spec.sha256:  # Released weights bring a default of their own.
            ignored.add("negative_prompt")
        self._compared = [name for name in Request.model_fields if name not in ignored]

    def is_done(self, path: Path) -> bool:
        """Whether ``path`` holds this video, made with the model's weights."""
        if not path.is_file():
            return False
        try:
            stored, made_by = read_request(path)
        except UserError:
            return False
        return made_by.get("weights") == self._weights and self._essence(stored) == self._essence(self.resolved)

    def _essence(self, request: Request) -> dict[str, Any]:
        """What decides the video. A rewritten prompt counts as what it was written from."""
        values = request.model_dump(mode="json", include=set(self._compared))
        return values if request.rewritten is None else {**values, "prompt": request.rewritten.original}


def run_jobs(jobs: Sequence[Job], make: Callable[[Request], None], done: Callable[[Job], None]) -> None:
    """Make the open jobs one after another.

    Args:
        jobs: what ``plan`` gave.
        make: makes the file of a request, or raises.
        done: called with every job when its outcome is known, in order.

    An interrupt (``KeyboardInterrupt``) ends the run; anything else that a job raises ends that job alone.
    """
    for job in jobs:
        if job.status == "open" and job.request is not None:
            start = time.perf_counter()
            try:
                make(job.request)
            except Exception as error:
                _log.debug("Line %d failed.", job.line, exc_info=True)
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".rstrip(": ")
                job = job.failed(" ".join(text.split()), time.perf_counter() - start)
            else:
                job = dataclasses.replace(job, status="made", seconds=time.perf_counter() - start)
        done(job)
