"""Prompt rewrite without a language model: instructions, answers, the two passes and the fallback rule."""

import json

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.caption.schema import Caption
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.answer import MAX_WORDS, NotInForm, quoted_texts, read_answer
from openhunyuan.infer.rewrite.instructions import (
    WORD_LIMITS,
    Message,
    draft_messages,
    repair_messages,
    revision_messages,
)
from openhunyuan.infer.rewrite.record import Mode, Rewrite, RewriteError
from openhunyuan.infer.rewrite.rewriter import rewrite_prompt, rewrite_request
from tests.infer.rewrite_server import DRAFT, DRAFT_TEXT, FINAL, FINAL_TEXT

MODES: tuple[Mode, ...] = ("normal", "master")


class Scripted:
    """A language model that gives prepared answers, or raises prepared errors, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[list[Message]] = []

    def ask(self, messages: list[Message]) -> str:
        self.asked.append(messages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer) if isinstance(answer, dict) else str(answer)


@pytest.mark.parametrize("mode", MODES)
def test_examples_are_in_the_form_that_the_instructions_ask_for(mode: Mode) -> None:
    messages = draft_messages("a dog", mode)
    assert [message["role"] for message in messages[:2]] == ["system", "user"]
    assert messages[-1] == {"role": "user", "content": "Request:\na dog"}
    pairs = list(zip(messages[1:-1:2], messages[2:-1:2], strict=True))
    assert len(pairs) >= 2
    for request, answer in pairs:
        assert (request["role"], answer["role"]) == ("user", "assistant")
        original = request["content"].removeprefix("Request:\n")
        rewritten = read_answer(answer["content"], original)
        assert set(json.loads(answer["content"])) == set(Caption.model_fields) - {"tags"}
        assert len(rewritten.text.split()) <= WORD_LIMITS[mode]
    assert any(not original["content"].isascii() or "Fuchs" in original["content"] for original, _ in pairs)


def test_instructions_name_every_key_and_camera_move_and_differ_by_mode() -> None:
    normal, master = (draft_messages("a dog", mode)[0]["content"] for mode in MODES)
    for key in set(Caption.model_fields) - {"tags"}:
        assert f'"{key}"' in normal
    assert '"around left"' in normal
    assert "Mode: normal" in normal
    assert "Mode: master" in master
    assert "Mode: normal" not in master


def test_revision_shows_prompt_and_draft() -> None:
    system, user = revision_messages("ein Hund", '{"short": "A dog."}', "normal")
    assert "Compare the two" in system["content"]
    assert user["content"] == 'Request:\nein Hund\n\nDraft:\n{"short": "A dog."}'


def test_repair_goes_on_with_the_conversation() -> None:
    messages = draft_messages("a dog", "normal")
    more = repair_messages(messages, "sure", "there is no JSON.")
    assert more[:-2] == messages
    assert more[-2] == {"role": "assistant", "content": "sure"}
    assert "there is no JSON." in more[-1]["content"]


@pytest.mark.parametrize(
    "around",
    [
        "%s",
        "```json\n%s\n```",
        "Here is {the caption}:\n%s\nI hope it helps!",
        '<think>{"short": 1} no...</think>\n%s',
        "[%s]",
    ],
)
def test_the_object_is_found_whatever_stands_around_it(around: str) -> None:
    assert read_answer(around % json.dumps(FINAL), "two foxes").text == FINAL_TEXT


def test_parts_come_in_one_order_as_sentences() -> None:
    parts = {
        "atmosphere": "calm",
        "style": "oil painting!",
        "lighting": " low sun ",
        "camera": "static",
        "shot_type": 'A sign says "GO."',
        "background": "a\n field",
        "dense": "a cow stands",
        "short": "A cow.",
    }
    expected = 'A cow stands. A field. A sign says "GO." The camera is static. Low sun. Oil painting! Calm.'
    assert read_answer(json.dumps(parts), "cow").text == expected


@pytest.mark.parametrize("camera", [None, "", "none", "None"])
def test_no_camera_move(camera: str | None) -> None:
    answer = json.dumps({**DRAFT, "camera": camera, "lighting": None})
    assert read_answer(answer, "fox").text == "A red fox runs through the snow."


@pytest.mark.parametrize(
    "answer, complaint",
    [
        ("", "empty"),
        ("<think>hm", "empty"),
        ("A fox runs through snow.", "no complete JSON object"),
        (json.dumps(DRAFT)[:-5], "no complete JSON object"),
        ("[1, 2]", "no complete JSON object"),
        ("{}", "short is missing"),
        (json.dumps({**DRAFT, "dense": "  "}), "dense"),
        (json.dumps({**DRAFT, "dense": ["a"]}), "must be text"),
        (json.dumps({**DRAFT, "camera": "slow dolly"}), "not a camera move"),
        (json.dumps({**DRAFT, "mood": "sad"}), "Unknown field mood"),
        (json.dumps({**DRAFT, "dense": "word " * (MAX_WORDS + 1)}), f"at most {MAX_WORDS}"),
        (json.dumps({**DRAFT, "dense": "一只狐狸在雪地里奔跑"}), "must be English"),
        ("x" * 30_000, "30000 characters"),
        ('{"a":' * 3_000, "no complete JSON object"),
    ],
)
def test_answers_that_are_not_in_the_form(answer: str, complaint: str) -> None:
    with pytest.raises(NotInForm, match=complaint):
        read_answer(answer, "a fox")


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot do this.",
        "I cannot assist with this request.",
        "I won't write that.",
        "As an AI, I do not describe such things.",
        "抱歉，我无法帮助您。",
        "对不起，我不能这样做。",
        json.dumps({**DRAFT, "dense": "I'm sorry, but I can't describe this."}),
    ],
)
def test_refusals(answer: str) -> None:
    with pytest.raises(RewriteError, match=r"^The rewriter refused: '"):
        read_answer(answer, "a fox")


def test_a_sorry_fox_is_no_refusal() -> None:
    answer = json.dumps({**DRAFT, "dense": "Sorry-looking fox. I will not stop, says its sign."})
    assert read_answer(answer, "fox").text.startswith("Sorry-looking")


def test_quoted_words_of_the_prompt_must_stay() -> None:
    assert quoted_texts('a sign "OPEN" and “zu”, 「店」') == ["OPEN", "zu", "店"]
    assert quoted_texts('"a whole prompt in quotes"') == []
    kept = json.dumps({**DRAFT, "dense": 'A shop sign says "开门".'})
    assert '"开门"' in read_answer(kept, "一家商店，招牌写着“开门”").text
    with pytest.raises(NotInForm, match="开门"):
        read_answer(json.dumps({**DRAFT, "dense": 'A shop sign says "open".'}), "招牌写着“开门”")


def test_draft_and_revision() -> None:
    chat = Scripted(DRAFT, FINAL)
    result = rewrite_prompt("zwei Füchse", "normal", chat)
    assert result == Rewrite(
        mode="normal", original="zwei Füchse", text=FINAL_TEXT, draft=DRAFT_TEXT, rewriter="scripted"
    )
    first, second = chat.asked
    assert first == draft_messages("zwei Füchse", "normal")
    assert "zwei Füchse" in second[1]["content"]
    assert DRAFT["dense"] in second[1]["content"]


def test_an_answer_not_in_the_form_is_sent_back_once() -> None:
    chat = Scripted("Sure! A fox.", DRAFT, FINAL)
    assert rewrite_prompt("foxes", "master", chat).text == FINAL_TEXT
    assert chat.asked[1][-2] == {"role": "assistant", "content": "Sure! A fox."}
    with pytest.raises(RewriteError, match="twice not in the form asked for: short is missing"):
        rewrite_prompt("foxes", "master", Scripted("Sure! A fox.", "{}"))


@pytest.mark.parametrize(
    "answers", [("no", "no"), (RewriteError("The rewriter is gone."),), ("I'm sorry, but I can't.",)]
)
def test_without_a_revision_the_draft_is_used_and_the_record_says_so(
    answers: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    result = rewrite_prompt("a fox", "normal", Scripted(DRAFT, *answers))
    assert result.text == result.draft == DRAFT_TEXT
    assert result.failure is None
    assert result.note
    assert result.note in caplog.text


def test_a_request_that_asks_for_nothing_is_left_alone() -> None:
    request = Request(prompt="a fox")
    assert rewrite_request(request, Scripted()) is request


def test_a_rewritten_request_keeps_both_prompts_and_is_not_rewritten_again() -> None:
    request = rewrite_request(Request(prompt="zwei Füchse", rewrite="normal", seed=3), Scripted(DRAFT, FINAL))
    assert request.prompt == FINAL_TEXT
    assert request.rewritten is not None
    assert request.rewritten.original == "zwei Füchse"
    assert request.seed == 3
    stored = json.loads(json.dumps(request.model_dump(mode="json")))
    again = Request(**stored)
    assert again == request
    assert rewrite_request(again, Scripted()) is again
    other = rewrite_request(again.replace(prompt="one fox"), Scripted(DRAFT, DRAFT))
    assert other.prompt == DRAFT_TEXT
    assert other.rewritten is not None
    assert other.rewritten.original == "one fox"


def test_on_failure_the_prompt_stays_and_the_record_says_why(caplog: pytest.LogCaptureFixture) -> None:
    error = RewriteError("The rewriter cannot be reached.", "http://secret.example/v1")
    asked = Request(prompt="a fox", rewrite="master")
    request = rewrite_request(asked, Scripted(error))
    assert request.prompt == "a fox"
    assert request.rewritten == Rewrite(
        mode="master",
        original="a fox",
        text="a fox",
        rewriter="scripted",
        failure="The rewriter cannot be reached.",
    )
    assert "rewriting failed" in caplog.text
    assert "http://secret.example/v1" in caplog.text
    assert "secret.example" not in request.model_dump_json()
    with pytest.raises(UserError, match=r"The rewriter at http://secret\.example/v1 cannot be reached"):
        rewrite_request(asked, Scripted(error), strict=True)
