"""Which language model rewrites: options and environment, the same for every verb."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record

if TYPE_CHECKING:
    from openhunyuan.infer.rewrite.rewriter import Chat

ADDRESS, MODEL, KEY = "OPENHUNYUAN_REWRITER", "OPENHUNYUAN_REWRITER_MODEL", "OPENHUNYUAN_REWRITER_KEY"
OPENAI_ADDRESS, OPENAI_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


class RewriterOptions(Record):
    """The language model that rewrites prompts."""

    rewriter: str | None = Field(
        None,
        description=f"OpenAI-compatible address, or folder of a causal language model. Default: ${ADDRESS}, "
        f"else ${OPENAI_ADDRESS}.",
    )
    rewriter_model: str | None = Field(
        None, description=f"The model's name at the address. Default: ${MODEL}, else the one it serves."
    )
    rewriter_key_env: str = Field(KEY, description="Environment variable that holds the key for the address.")
    rewriter_timeout: float = Field(60.0, description="Seconds for one answer of the rewriter, above 0.")
    rewriter_retries: int = Field(2, description="Further tries after a failure that may pass, 0 to 20.")

    @field_validator("rewriter_timeout")
    @classmethod
    def _timeout(cls, value: float) -> float:
        if not 0 < value <= 86400:
            raise UserError(f"rewriter_timeout is {value:g}, but it must be above 0 and at most 86400 seconds.")
        return value

    @field_validator("rewriter_retries")
    @classmethod
    def _retries(cls, value: int) -> int:
        if not 0 <= value <= 20:
            raise UserError(f"rewriter_retries is {value}, but it must be from 0 to 20.")
        return value


def open_rewriter(options: RewriterOptions, device: Any = None, dtype: Any = None) -> Chat:
    """The language model of the options. Connects to nothing yet; a folder is loaded.

    Args:
        options: where it is; what is left open is read from the environment.
        device: for a folder: as in ``base.device.pick_device``.
        dtype: for a folder: as in ``base.device.pick_dtype``.

    Raises:
        UserError: nothing names a rewriter, the address is not one, the folder is not a causal language model.
    """
    where, key = options.rewriter or os.environ.get(ADDRESS), os.environ.get(options.rewriter_key_env)
    if not where and os.environ.get(OPENAI_ADDRESS):
        # The key of that address goes to that address only.
        where, key = os.environ[OPENAI_ADDRESS], key or os.environ.get(OPENAI_KEY)
    if not where:
        raise UserError(
            f"No rewriter is named; give --rewriter an OpenAI-compatible address or a model folder, or set {ADDRESS}."
        )
    if "://" in where:
        from openhunyuan.infer.rewrite.endpoint import Endpoint

        model = options.rewriter_model or os.environ.get(MODEL)
        return Endpoint(where, model, key, options.rewriter_timeout, options.rewriter_retries)
    from openhunyuan.infer.rewrite.local import LocalModel

    return LocalModel.from_folder(where, device, dtype, options.rewriter_timeout)
