"""Rewriting a prompt in two passes, and the rule for when it fails (report section 4.6, release fact H).

A draft in the standard form, then a revision that compares it with the original. An answer that is not in the form is
sent back once with the reason. The rule: without a usable draft there is no rewrite; without a usable revision the
draft is the rewrite.
"""

from __future__ import annotations

from typing import Protocol

from openhunyuan.base.log import get_logger
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.answer import NotInForm, Rewritten, read_answer
from openhunyuan.infer.rewrite.instructions import Message, draft_messages, repair_messages, revision_messages
from openhunyuan.infer.rewrite.record import Mode, Rewrite, RewriteError

_log = get_logger("rewrite")


class Chat(Protocol):
    """A language model that answers: ``endpoint.Endpoint`` or ``local.LocalModel``."""

    @property
    def name(self) -> str:
        """What the record calls it: neither an address nor a path."""
        ...

    def ask(self, messages: list[Message]) -> str:
        """The answer to a conversation. Raises ``RewriteError`` when there is none."""
        ...


def rewrite_prompt(prompt: str, mode: Mode, chat: Chat) -> Rewrite:
    """The prompt in the standard form.

    Raises:
        RewriteError: no usable draft; the sentence says why.
    """
    draft = _ask(draft_messages(prompt, mode), prompt, chat)
    final, note = draft, None
    try:
        final = _ask(revision_messages(prompt, draft.json_text, mode), prompt, chat)
    except RewriteError as error:
        note = error.reason
        _log.warning("The draft of the rewritten prompt is used without a revision. %s", error)
    return Rewrite(mode=mode, original=prompt, text=final.text, draft=draft.text, rewriter=chat.name, note=note)


def rewrite_request(request: Request, chat: Chat, strict: bool = False) -> Request:
    """The request with its prompt rewritten as it asks, and what happened under ``rewritten``.

    A request that asks for nothing, or was rewritten before, comes back as it is. When rewriting fails, the original
    prompt is kept, a warning is logged and the reason is stored; with ``strict`` the ``RewriteError`` is raised.
    """
    prompt, before = request.prompt, request.rewritten
    # A request that was given another prompt since is a new one.
    if request.rewrite == "none" or (before is not None and before.text == prompt):
        return request
    try:
        result = rewrite_prompt(prompt, request.rewrite, chat)
    except RewriteError as error:
        if strict:
            raise
        _log.warning("The prompt is used as it is, because rewriting failed. %s", error)
        result = Rewrite(mode=request.rewrite, original=prompt, text=prompt, rewriter=chat.name, failure=error.reason)
    return request.replace(prompt=result.text, rewritten=result)


def _ask(messages: list[Message], prompt: str, chat: Chat) -> Rewritten:
    """The prompt in the answer to a conversation; an answer that is not in the form gets one more try."""
    answer = chat.ask(messages)
    try:
        return read_answer(answer, prompt)
    except NotInForm as complaint:
        again = chat.ask(repair_messages(messages, answer, str(complaint)))
    try:
        return read_answer(again, prompt)
    except NotInForm as complaint:
        raise RewriteError(f"The rewriter's answer was twice not in the form asked for: {complaint}") from None
