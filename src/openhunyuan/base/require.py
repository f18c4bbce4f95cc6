"""Optional packages, asked for by name at the moment they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from openhunyuan.base.errors import UserError


def require(module: str, extra: str | None = None, package: str | None = None) -> ModuleType:
    """Import ``module`` and return it; raise ``UserError`` with the pip command when it is not installed.

    Args:
        module: dotted import name, e.g. ``"scenedetect"``.
        extra: the extra of this package that brings it, e.g. ``"curate"``.
        package: the name on the package index where it differs from the module, e.g. ``"av"`` for PyAV.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise  # The package is there but one of its own imports is not: that message says more than ours.
        wanted = f"openhunyuan[{extra}]" if extra else (package or top)
        raise UserError(f"This needs the package {package or top}; install it with: pip install '{wanted}'.") from None
