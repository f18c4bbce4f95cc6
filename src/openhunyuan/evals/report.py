"""The record of an alignment evaluation: counts per value and samples; as a rich table, as Markdown, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

ATTRIBUTES = ("color", "shape", "motion", "background")
"""The four attributes every prompt names; the parts of the background and the camera are reported besides."""


class Count(BaseModel):
    """How often one value was asked for, seen as asked, and refused (seen as nothing in particular)."""

    model_config = ConfigDict(frozen=True)

    total: int
    right: int
    rejected: int

    @property
    def accuracy(self) -> float:
        """Share seen as asked, 0..1; 0 when nothing was asked."""
        return self.right / self.total if self.total else 0.0


class AttributeReport(BaseModel):
    """One attribute: the overall count, one count per value, and what wrong values were seen as ("red -> orange":
    2)."""

    model_config = ConfigDict(frozen=True)

    overall: Count
    values: dict[str, Count]
    confusions: dict[str, int]

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str | None]], order: Iterable[str] = ()) -> AttributeReport:
        """Count (asked, seen) pairs; values appear in the given order, others after it."""
        pairs = list(pairs)
        asked = Counter(a for a, _ in pairs)
        right = Counter(a for a, s in pairs if a == s)
        rejected = Counter(a for a, s in pairs if s is None)
        names = [n for n in order if n in asked] + sorted(set(asked) - set(order))
        wrong = Counter(f"{a} -> {s or 'rejected'}" for a, s in pairs if a != s)
        return cls(
            overall=Count(total=len(pairs), right=sum(right.values()), rejected=sum(rejected.values())),
            values={n: Count(total=asked[n], right=right[n], rejected=rejected[n]) for n in names},
            confusions=dict(wrong.most_common()),
        )


class Sample(BaseModel):
    """One generated video: what was asked, what was seen (None = refused), which attributes are right."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    seed: int
    asked: dict[str, str]
    seen: dict[str, str | None]
    correct: dict[str, bool]
    video: str
    """Path of the cached frames, relative to the output folder."""
    first_frame_psnr: float | None = None
    """How well the first frame matches the picture that was given, dB; None without one."""


class FirstFrame(BaseModel):
    """How well first frames match the pictures that videos started from, PSNR in dB."""

    model_config = ConfigDict(frozen=True)

    mean: float
    worst: float
    above_28: float
    """Share of the videos with at least 28 dB."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> FirstFrame | None:
        """Over all samples; None when none was given a picture."""
        values = [s.first_frame_psnr for s in samples if s.first_frame_psnr is not None]
        if not values:
            return None
        above = sum(value >= 28 for value in values) / len(values)
        return cls(mean=sum(values) / len(values), worst=min(values), above_28=above)


class Report(BaseModel):
    """An alignment evaluation.

    attributes: color, shape, motion, background (and its parts background_color and material) over the prompts
    without a camera; camera: over the prompts that name a camera move; all_correct: share of the former with all
    four attributes right.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    fingerprint: str
    """SHA-256 over the model's files: what exactly was measured."""
    split: str
    seed: int
    num_prompts: int
    settings: dict[str, float | int | str | None]
    """The resolved request that every video was made with."""
    attributes: dict[str, AttributeReport]
    camera: AttributeReport | None
    camera_attributes: dict[str, AttributeReport]
    """Colour, shape and background of the prompts that name a camera move."""
    all_correct: float
    seconds: float
    samples: list[Sample]
    camera_samples: list[Sample]
    first_frame: FirstFrame | None = None
    """Set when the videos started from pictures."""

    def accuracy(self, attribute: str) -> float:
        """Share right of one attribute, 0..1 ("camera" included)."""
        report = self.camera if attribute == "camera" else self.attributes[attribute]
        return report.overall.accuracy if report else 0.0

    def table(self) -> Table:
        """Every value of every attribute as a rich table."""
        title = f"{self.model}: alignment on {self.num_prompts} {self.split} prompts (seed {self.seed})"
        table = Table(title=title, title_justify="left")
        for column in ("attribute", "value"):
            table.add_column(column)
        for column in ("prompts", "right", "rejected", "accuracy"):
            table.add_column(column, justify="right")
        for name, value, count in self.rows():
            style = "bold" if value == "overall" else None
            cells = (str(count.total), str(count.right), str(count.rejected), f"{count.accuracy:.3f}")
            table.add_row(name, value, *cells, style=style, end_section=value == "overall")
        table.add_row("all four", "overall", str(self.num_prompts), "", "", f"{self.all_correct:.3f}", style="bold")
        if self.first_frame:
            shown = f"mean {self.first_frame.mean:.1f} dB", f"worst {self.first_frame.worst:.1f} dB"
            table.add_row("first frame", *shown, ">= 28 dB", "", f"{self.first_frame.above_28:.3f}", style="bold")
        return table

    def rows(self) -> list[tuple[str, str, Count]]:
        """(attribute, value, count) for every value, each attribute closed by its "overall" row."""
        sections: Mapping[str, AttributeReport] = dict(self.attributes)
        if self.camera:
            sections = {**sections, "camera": self.camera}
        rows = []
        for name, report in sections.items():
            rows += [(name, value, count) for value, count in report.values.items()]
            rows.append((name, "overall", report.overall))
        return rows

    def markdown(self) -> str:
        """The table, the confusions and the failures, as a page."""
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items())
        lines = [
            f"# Alignment of `{self.model}` on {self.num_prompts} {self.split} prompts",
            "",
            f"Seed {self.seed}; {settings}; weights `{self.fingerprint[:16]}`; {self.seconds:.0f} s. Measured from"
            " pixels alone; *rejected* counts videos in which the attribute was too unclear to name.",
            "",
            "| attribute | right | prompts | accuracy |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, value, count in self.rows():
            if value == "overall":
                lines.append(f"| **{name}** | {count.right} | {count.total} | **{count.accuracy:.3f}** |")
        lines += [f"| **all four** | | {self.num_prompts} | **{self.all_correct:.3f}** |"]
        if self.first_frame:
            match = self.first_frame
            lines += [
                "",
                f"First frame against the given picture: mean {match.mean:.2f} dB, worst {match.worst:.2f} dB;",
            ]
            lines += [f"{match.above_28:.3f} of the videos have at least 28 dB."]
        lines += ["", "## Per value", ""]
        lines += [
            "| attribute | value | prompts | right | rejected | accuracy |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for name, value, count in self.rows():
            lines.append(
                f"| {name} | {value} | {count.total} | {count.right} | {count.rejected} | {count.accuracy:.3f} |"
            )
        lines += ["", "## Seen instead", ""]
        for name, report in {**self.attributes, **({"camera": self.camera} if self.camera else {})}.items():
            if report.confusions:
                lines.append(f"- {name}: " + ", ".join(f"{k} ({n})" for k, n in report.confusions.items()))
        failed = [s for s in self.samples + self.camera_samples if not all(s.correct.values())]
        lines += ["", f"## Failures ({len(failed)})", ""]
        for sample in failed:
            wrong = ", ".join(f"{k}: {sample.seen[k] or 'rejected'}" for k, ok in sample.correct.items() if not ok)
            lines.append(f"- seed {sample.seed}, “{sample.prompt}”: {wrong}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """report.json and report.md in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.model_dump_json(indent=1))
        (folder / "report.md").write_text(self.markdown())
