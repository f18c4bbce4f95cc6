"""Frozen, validated values whose errors are sentences: the base of requests and configs.

A wrong value, a missing field or an unknown key raises ``UserError`` (never a page of validator output), and an unknown
key names the nearest known one, so that a misspelt setting is never silently a default.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from openhunyuan.base.errors import UserError


class Record(BaseModel):
    """A frozen pydantic model that forbids unknown keys and raises ``UserError``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(sentence(error, type(self))) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read the record from a JSON file; errors name the file."""
        values = read_json(path)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file's object; ``UserError`` when it is missing, not JSON, or not an object."""
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The file {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object.")
    return values


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when nothing is near."""
    known = list(known)
    # A whole part of a long name ("steps" for "num_inference_steps") is near for a person, not for an edit distance.
    word = name.strip("-_")
    holding = [candidate for candidate in known if len(word) > 2 and word in candidate]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if holding else 0.5)
    return close[0] if close else min(holding, key=lambda found: (not found.startswith(word), len(found)), default=None)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence about an unknown name: the nearest known one, else all of them."""
    known = list(known)
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}."
    return f"Unknown {kind} {name}; {hint}"


_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
}


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of a validation's complaints, as one sentence in the fields' own names."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    name = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    cause = context.get("error")
    if isinstance(cause, ValueError):
        text = str(cause)
        return text if isinstance(cause, UserError) or not name else f"{name}: {text}"
    if kind == "missing":
        return f"{name} is missing; give it a value."
    if kind == "extra_forbidden":
        parent: Any = model
        for part in first["loc"][:-1]:
            annotation = parent.model_fields[str(part)].annotation if str(part) in parent.model_fields else None
            parent = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
        return unknown("field", str(first["loc"][-1]), parent.model_fields)
    value = first.get("input")
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    if kind in _WANTED:
        wanted = _WANTED[kind]
    elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        word, limit = {
            "greater_than": ("above", "gt"),
            "greater_than_equal": ("at least", "ge"),
            "less_than": ("below", "lt"),
            "less_than_equal": ("at most", "le"),
        }[kind]
        wanted = f"{word} {context[limit]}"
    elif kind in ("literal_error", "enum"):
        wanted = f"one of {context.get('expected')}"
    else:
        return f"{name} is {shown}, which is not allowed: {first['msg']}."
    return f"{name} is {shown}, but it must be {wanted}."
