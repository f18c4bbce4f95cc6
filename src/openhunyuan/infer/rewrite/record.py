"""What a rewrite gave: kept in the request, and so in the file of the video, beside the prompt that was used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openhunyuan.base.chat import ChatError
from openhunyuan.base.record import Record

Mode = Literal["normal", "master"]


class RewriteError(ChatError):
    """The rewriter gave nothing usable: not reachable, too slow, a refusal, an answer that is not in the form.

    Args:
        reason: one sentence about "The rewriter". It is what a record keeps.
        address: named in the error for the person at the keyboard, and not in the record: videos are passed on.
    """

    def __init__(self, reason: str, address: str | None = None, refused: bool = False) -> None:
        named = reason.replace("The rewriter", f"The rewriter at {address}", 1) if address else reason
        super().__init__(named, refused)
        self.reason = " ".join(reason.split())


class Rewrite(Record):
    """One prompt rewritten, or kept because rewriting failed. Holds no address and no key."""

    mode: Mode = Field(description="normal keeps to the prompt; master adds composition, light and camera.")
    original: str = Field(description="The prompt as it was given.")
    text: str = Field(description="The prompt to use: the rewritten one, or the original one after a failure.")
    draft: str | None = Field(default=None, description="What the first pass gave, before the revision.")
    rewriter: str = Field(description="Name of the language model.")
    failure: str | None = Field(
        default=None, description="Why the original prompt was used; null when it was rewritten."
    )
    note: str | None = Field(
        default=None, description="Why the draft was used without a revision; null when it was revised."
    )
