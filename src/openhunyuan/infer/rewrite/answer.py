"""From a language model's answer to a prompt: the JSON object in it, and the checks.

Its parts become a text by the function that writes training texts (`caption.schema.combine`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from openhunyuan.base.chat import is_refusal, json_object, without_thought
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.caption.schema import PROMPT_PARTS, Caption, combine
from openhunyuan.infer.rewrite.record import RewriteError

MAX_WORDS = 220
"""Longer prompts are refused: the released text encoder would cut them."""
MAX_CHARACTERS = 20_000

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|「([^」]+)」|『([^』]+)』|«([^»]+)»")


class NotInForm(Exception):
    """The answer cannot be used, but asking again may help. The text says why, to the language model and to people."""


class Rewritten(Record):
    """A caption in the standard form, as a prompt.

    Attributes:
        caption: the parts.
        text: the prompt: the parts in one fixed order, each a sentence.
    """

    caption: Caption
    text: str

    @property
    def json_text(self) -> str:
        """The parts as the JSON object that a language model is asked for."""
        return json.dumps(self.caption.model_dump(exclude={"tags"}), ensure_ascii=False)


def read_answer(answer: str, original: str) -> Rewritten:
    """The prompt in an answer to ``original``.

    Raises:
        NotInForm: no JSON object of the form, too long, not English, or a quoted text of the original is lost.
        RewriteError: a refusal. Asking again would only be refused again.
    """
    answer = without_thought(answer)
    if not answer:
        raise NotInForm("the answer is empty.")
    if len(answer) > MAX_CHARACTERS:
        raise NotInForm(f"the answer has {len(answer)} characters; a caption needs less than {MAX_CHARACTERS}.")
    found = json_object(answer)
    if found is None:
        if is_refusal(answer):
            raise RewriteError(f"The rewriter refused: {_quote(answer)}")
        raise NotInForm("there is no complete JSON object in the answer.")
    try:
        caption = Caption(**_values(found))
    except UserError as error:
        raise NotInForm(f"{str(error).rstrip('.')}.") from None
    if is_refusal(caption.dense):
        raise RewriteError(f"The rewriter refused: {_quote(caption.dense)}")
    text = combine(caption, PROMPT_PARTS)
    _check(text, original)
    return Rewritten(caption=caption, text=text)


def quoted_texts(text: str) -> list[str]:
    """The texts between double quotes (of several scripts): words that must be readable in the picture.

    Quotes around the whole text are only quotes.
    """
    if _QUOTED.fullmatch(text.strip()):
        return []
    return [next(group for group in match if group) for match in _QUOTED.findall(text)]


def _check(text: str, original: str) -> None:
    words = len(text.split())
    if words > MAX_WORDS:
        raise NotInForm(f"it has {words} words, but at most {MAX_WORDS} are read.")
    lost = [quoted for quoted in quoted_texts(original) if quoted.lower() not in text.lower()]
    if lost:
        raise NotInForm(f"the quoted text {json.dumps(lost[0], ensure_ascii=False)} of the request must stay as it is.")
    plain = _QUOTED.sub("", text)
    for quoted in quoted_texts(original):
        plain = plain.replace(quoted, "")
    letters = [letter for letter in plain if letter.isalpha()]
    # Names such as "Café Zürich" are Latin letters too; another script outside quotes is an answer not translated.
    if sum(ord(letter) > 0x24F for letter in letters) > 0.05 * max(len(letters), 1):
        raise NotInForm("the values must be English; only quoted words may be in another script.")


def _values(found: dict[str, Any]) -> dict[str, Any]:
    """The object's values without blanks around them, and without those that say "nothing" in another way."""
    values = {name: value.strip() if isinstance(value, str) else value for name, value in found.items()}
    if str(values.get("camera")).lower() in ("", "none", "null"):
        values["camera"] = None
    return {name: value for name, value in values.items() if value is not None}


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text[:160]}...'" if len(text) > 160 else f"'{text}'"
