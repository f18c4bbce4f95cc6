import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, nearest


class Inner(Record):
    depth: int = 1


class Knobs(Record):
    rate: float = Field(0.1, gt=0)
    steps: int = Field(ge=1)
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": "abc"}, "steps is 'abc', but it must be a whole number"),
        ({"steps": 0}, "steps is 0, but it must be at least 1"),
        ({"steps": 1, "rate": 0}, "rate is 0, but it must be above 0"),
        ({}, "steps is missing"),
        ({"steps": 1, "kind": "c"}, "kind is 'c', but it must be one of 'a' or 'b'"),
        ({"steps": 1, "step": 2}, "Unknown field step; did you mean steps"),
        ({"steps": 1, "inner": {"dept": 2}}, "Unknown field dept; did you mean depth"),
    ],
)
def test_errors_are_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Knobs(**values)
    assert "\n" not in str(caught.value)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Knobs(steps=1).steps = 2  # type: ignore[misc]


def test_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "knobs.json"
    path.write_text(json.dumps({"steps": 3}))
    assert Knobs.read(path) == Knobs(steps=3)
    path.write_text(json.dumps({"stps": 3}))
    with pytest.raises(UserError, match=r"knobs\.json"):
        Knobs.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Knobs.read(path)


@pytest.mark.parametrize(
    "name, found",
    [
        ("--heigth", "--height"),
        ("--num_frames", "--num-frames"),
        ("--steps", "--num-inference-steps"),
        ("--xyzzy", None),
    ],
)
def test_nearest(name: str, found: str | None) -> None:
    assert nearest(name, ["--height", "--num-frames", "--fps", "--num-inference-steps"]) == found


def test_a_name_that_begins_so_is_nearer_than_a_shorter_one_that_holds_it() -> None:
    assert nearest("motion", ["blur.motion", "motion.speed", "motion.speed_p90"]) == "motion.speed"
