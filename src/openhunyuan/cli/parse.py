"""Command-line options from a record: tyro reads them, and what it refuses is said in one sentence.

An options class is a ``Record``; its fields' descriptions are the ``--help``. Fields named in ``positional`` are given
without a name.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import create_model
from pydantic.fields import FieldInfo

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, nearest

Options = TypeVar("Options", bound=Record)
_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT"}


def parse(options: type[Options], args: Sequence[str], prog: str, positional: tuple[str, ...] = ()) -> Options:
    """Read ``args`` into ``options``; ``--help`` prints and exits.

    Raises:
        UserError: an unknown option (names the nearest), a missing or wrong value, a missing option.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            read = tyro.cli(
                _for_tyro(options, positional), args=list(args), prog=prog, description=inspect.getdoc(options)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        _explain(options, args, prog, positional)
        raise UserError(_unboxed(complaint.getvalue())) from None
    sys.stderr.write(complaint.getvalue())
    return options(**{field.alias or name: getattr(read, name) for name, field in _fields(options).items()})


def _for_tyro(options: type[Record], positional: tuple[str, ...]) -> Any:
    """The same record with readable value names: INT instead of {None}|INT, and no "(default: None)"."""
    import tyro

    fields: dict[str, Any] = {}
    for name, field in _fields(options).items():
        kind = _value_type(field)
        hint = None
        if field.default is None or _is_repeated(field):
            hint = ""
        elif typing.get_origin(kind) is Literal or kind is bool:
            hint = f"(default: {field.default})" if not field.is_required() else None
        metavar = name.upper() if name in positional else _METAVARS.get(str if _is_repeated(field) else kind)
        marks: list[Any] = [tyro.conf.arg(name=field.alias, metavar=metavar, help_behavior_hint=hint)]
        if name in positional:
            marks.append(tyro.conf.Positional[Any].__metadata__[0])
        if _is_repeated(field):
            marks.append(tyro.conf.UseAppendAction[Any].__metadata__[0])
        annotation: Any = field.annotation
        for mark in marks:
            annotation = Annotated[annotation, mark]
        default = ... if field.is_required() else field.default
        fields[name] = (annotation, FieldInfo(default=default, description=field.description))
    # Values are checked once, by the record itself: this copy only says what there is to read.
    return create_model(options.__name__, **fields)


def _fields(options: type[Record]) -> dict[str, FieldInfo]:
    """The fields that are options. A record within the record (a result that is kept) is not something one types."""

    def is_record(field: FieldInfo) -> bool:
        kind = _value_type(field)
        return isinstance(kind, type) and issubclass(kind, Record)

    return {name: field for name, field in options.model_fields.items() if not is_record(field)}


def _value_type(field: FieldInfo) -> Any:
    """The type of a field without its ``| None``."""
    if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(field.annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else field.annotation
    return field.annotation


def _is_repeated(field: FieldInfo) -> bool:
    """Whether the option may be given several times: its field is a tuple of texts."""
    return typing.get_origin(field.annotation) is tuple


def _explain(options: type[Record], args: Sequence[str], prog: str, positional: tuple[str, ...]) -> None:
    """Read the options once more, plainly, and raise ``UserError`` at the first thing that is wrong."""
    fields = {field.alias or name: field for name, field in _fields(options).items()}
    names = {f"--{name.replace('_', '-')}": name for name in fields if name not in positional}
    flags = {option for option, name in names.items() if _value_type(fields[name]) is bool}
    values: dict[str, Any] = {}
    places = list(positional)
    rest = list(args)
    while rest:
        token = rest.pop(0)
        if not _is_option(token):
            if not places:
                raise UserError(f"Unexpected argument '{token}'; a text of several words needs quotes around it.")
            values[places.pop(0)] = token
            continue
        given, has_value, value = token.partition("=")
        option = given.replace("_", "-")
        if option.startswith("--no-") and f"--{option[5:]}" in flags:
            values[names[f"--{option[5:]}"]] = False
        elif option not in names:
            near = nearest(option, names)
            hint = f"did you mean {near}?" if near else f"see {prog} --help."
            raise UserError(f"Unknown option {given}; {hint}")
        elif option in flags:
            values[names[option]] = True
        else:
            if not has_value:
                if not rest or _is_option(rest[0]):
                    hint = f"; a value that begins with a dash is written {option}=VALUE" if rest else ""
                    raise UserError(f"The option {option} needs a value{hint}.")
                value = rest.pop(0)
            repeated = _is_repeated(fields[names[option]])
            values[names[option]] = (*values.get(names[option], ()), value) if repeated else value
    for name, field in fields.items():
        if field.is_required() and name not in values:
            raise UserError(
                f"{name.upper()} is missing; see {prog} --help."
                if name in positional
                else f"The option --{name.replace('_', '-')} is missing; see {prog} --help."
            )
    options(**values)


def _is_option(token: str) -> bool:
    return token.startswith("-") and re.fullmatch(r"-(\d.*|\.\d+|inf|nan)?", token) is None


def _unboxed(text: str) -> str:
    """The first paragraph of a message in a box, on one line."""
    lines = [line.strip("│╭╮╰╯─ \t") for line in text.splitlines()]
    kept = [line for line in lines[1:] if line] or [line for line in lines if line] or ["The options cannot be read."]
    return kept[0]
