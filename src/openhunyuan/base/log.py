"""Messages to people: one logger to stderr, one rich console for progress and tables."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NAME = "openhunyuan"


def get_logger(name: str | None = None) -> logging.Logger:
    """The package's logger, or a child of it. It prints nothing until ``start_logging`` or the host program says so."""
    return logging.getLogger(f"{NAME}.{name}" if name else NAME)


def start_logging(verbose: bool = False) -> None:
    """Send the package's messages to stderr as plain lines (used by the command line, never at import)."""
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False


def console(stderr: bool = False) -> Console:
    """A rich console. Progress goes to stderr so that stdout stays the result."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is now: tests and progress bars replace it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
