"""The rewriter behind an OpenAI-compatible HTTP endpoint: ``base.chat`` with the rewriter's name and errors."""

from __future__ import annotations

from openhunyuan.base.chat import ChatEndpoint
from openhunyuan.infer.rewrite.record import RewriteError


class Endpoint(ChatEndpoint):
    """An address that serves the rewriter; see ``ChatEndpoint`` for its arguments. Raises ``RewriteError``."""

    who = "rewriter"
    model_option = "--rewriter-model"

    def error(self, sentence: str, refused: bool) -> RewriteError:
        return RewriteError(sentence, self.url, refused)
