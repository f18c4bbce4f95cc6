"""The list of the experiments, with the verdicts that stand on their pages: ``python -m experiments.index``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from experiments.common import PAGES, command, page_of, table
from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic

EXPERIMENTS: dict[tuple[str, str], str] = {
    ("a", "tiling"): "a fine-tune with tiles on and off lowers the seams and keeps PSNR (§4.1)",
    ("b", "mix-scale"): "tuning at 512 alone hurts 256, mixed scales do not (§4.5)",
    ("c", "image-first"): "video training from image weights reaches a loss sooner (§4.5)",
    ("d", "schedules"): "the shift beats linear-quadratic at 10 steps and grows as steps shrink (§5)",
    ("e", "guidance"): "the guidance-distilled student gives in one pass what two passes give (§5)",
    ("f", "steps"): "a step-distilled student needs 4 to 8 steps instead of 50",
    ("g", "refiner"): "a bidirectional refiner over causal text states makes text guide better (§4.3)",
    ("h", "captions"): "captions with dropout and permutation make short and shuffled prompts work (§3.2)",
    ("i", "balance"): "cost-balanced, token-weighted batches against a random bucket a process (§4.5)",
    ("j", "filters"): "what the curation filters leave trains a better model, and each of them helps (§3.1)",
}
"""(letter, name) → what is claimed. The module is ``experiments.LETTER_NAME``."""
INTRODUCTION = """# Experiments

What the report claims, tried on the synthetic world at a scale of minutes on two CPU cores. Each page is written by its
script from what was measured: the rule that decides was fixed in the script, and a claim that did not hold says so.
Runs this small show whether an effect exists in this code and which way it points. They do not show its size at 13B
parameters, and "not reproduced" means not at this scale."""
END = """```sh
python -m experiments.d_schedules            # goes on where it was stopped; keeps all in runs/experiments
python -m experiments.d_schedules --quick    # the smallest form, seconds
python -m experiments.index                  # this page
```"""


def verdict(page: Path) -> str:
    """What a page says of its claim.

    Raises:
        UserError: the page has no verdict.
    """
    found = re.search(r"^\*\*Verdict: ([^*]+)\.\*\*", page.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise UserError(f"{page} has no verdict; write it again with its script.")
    return found[1]


def index(pages: Path = PAGES) -> str:
    """The list; an experiment without a page has not been run."""
    rows = [["experiment", "claim", "verdict"]]
    for (letter, name), claim in EXPERIMENTS.items():
        page = page_of(f"{letter}-{name}", pages)
        if page.exists():
            rows.append([f"[{letter}. {name}]({page.relative_to(pages.parent)})", claim, f"**{verdict(page)}**"])
        else:
            rows.append([f"{letter}. {name}", claim, f"not run; `{command(letter, name)}`"])
    return "\n\n".join((INTRODUCTION, table(rows), END)) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.index", description=__doc__)
    parser.add_argument("--pages", type=Path, default=PAGES, help="where the pages are; the list goes beside them")
    pages = parser.parse_args(argv).pages
    write_atomic(pages.with_suffix(".md"), index(pages).encode())


if __name__ == "__main__":
    main()
