"""A local folder as the rewriter: a tiny random Llama, and one whose weights are set so that it answers in the form."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM

from openhunyuan.base.errors import UserError
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite import local
from openhunyuan.infer.rewrite.instructions import Message, draft_messages
from openhunyuan.infer.rewrite.local import LocalModel
from openhunyuan.infer.rewrite.options import RewriterOptions, open_rewriter
from openhunyuan.infer.rewrite.record import RewriteError
from openhunyuan.infer.rewrite.rewriter import rewrite_request
from openhunyuan.models.text.tokenizer import save_llm_tokenizer, train_llm_tokenizer
from tests.infer.rewrite_server import FINAL, FINAL_TEXT

HELLO: list[Message] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def write_folder(folder: Path, answers: str | None = None, max_position_embeddings: int = 32_768) -> Path:
    """A Llama of two layers, 16 wide. With ``answers`` its next token is that text after anything, and then the end."""
    tokenizer = train_llm_tokenizer(["the fox runs through the snow", "the request and the draft"] * 8, 300)
    if answers is not None:
        tokenizer.add_tokens([AddedToken(answers, normalized=False)])
    folder.mkdir(exist_ok=True)
    save_llm_tokenizer(folder, tokenizer, max_position_embeddings)
    end = tokenizer.token_to_id("<|eot_id|>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=max_position_embeddings,
                initializer_range=0.5,
                bos_token_id=tokenizer.token_to_id("<|begin_of_text|>"),
                eos_token_id=end,
            )
        )
    if answers is not None:
        said = tokenizer.token_to_id(answers)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            # Coordinate 0 says "something was said", coordinate 1 "the answer was said".
            model.model.embed_tokens.weight.zero_()
            model.model.embed_tokens.weight[:, 0] = 1
            model.model.embed_tokens.weight[said] = torch.eye(16)[1]
            model.lm_head.weight.zero_()
            model.lm_head.weight[said, 0] = 1
            model.lm_head.weight[end, 1] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rewriter") / "random-llama")


@pytest.fixture(scope="module")
def answering_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rewriter") / "answering-llama", json.dumps(FINAL))


def greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """Greedy decoding without a cache, one whole pass a token."""
    out: list[int] = []
    with torch.inference_mode():
        for _ in range(steps):
            out.append(int(model(torch.tensor([ids + out]), use_cache=False).logits[0, -1].argmax()))
    return out


def test_the_answer_is_what_greedy_decoding_gives(random_folder: Path) -> None:
    chat = LocalModel.from_folder(random_folder, "cpu", "float32")
    text = "System: Be kind.\n\nUser: hello\n\nAssistant:"
    ids = chat.tokenizer(text)["input_ids"]
    expected = greedy(chat.model, ids, 12)
    end = expected[-1]
    expected = expected[: expected.index(end) + 1]
    assert len(expected) > 3
    chat.model.generation_config.eos_token_id = end
    assert chat.ask(HELLO) == chat.tokenizer.decode(expected, skip_special_tokens=True)


def test_an_answer_that_does_not_end(random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", 8)
    with pytest.raises(RewriteError, match="did not end within 8 tokens"):
        LocalModel.from_folder(random_folder, "cpu", "float32").ask(HELLO)
    with pytest.raises(RewriteError, match=r"did not answer within 1e-06 s"):
        LocalModel.from_folder(random_folder, "cpu", "float32", timeout=1e-6).ask(HELLO)


def test_a_random_model_leaves_the_prompt_as_it_is(random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", 8)
    chat = open_rewriter(RewriterOptions(rewriter=str(random_folder)), "cpu", "float32")
    request = rewrite_request(Request(prompt="a fox", rewrite="normal"), chat)
    assert request.prompt == "a fox"
    assert request.rewritten is not None
    assert request.rewritten.rewriter == "random-llama"
    assert request.rewritten.failure == "The rewriter's answer did not end within 8 tokens."


def test_a_model_that_answers_in_the_form(answering_folder: Path) -> None:
    chat = open_rewriter(RewriterOptions(rewriter=str(answering_folder)), "cpu", "float32")
    request = rewrite_request(Request(prompt="foxes", rewrite="master"), chat)
    assert request.prompt == FINAL_TEXT
    assert request.rewritten is not None
    assert request.rewritten.failure is None
    assert request.rewritten.rewriter == "answering-llama"
    assert str(answering_folder.parent) not in request.model_dump_json()


def test_a_chat_template_is_used(answering_folder: Path) -> None:
    chat = LocalModel.from_folder(answering_folder, "cpu", "float32")
    chat.tokenizer.chat_template = TEMPLATE
    expected = "[system] Be kind.<|eot_id|>[user] hello<|eot_id|>[assistant] "
    assert chat._tokens(HELLO) == chat.tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert chat.ask(HELLO) == json.dumps(FINAL)


def test_a_template_without_a_system_role(answering_folder: Path) -> None:
    chat = LocalModel.from_folder(answering_folder, "cpu", "float32")
    chat.tokenizer.chat_template = NO_SYSTEM
    expected = "[user] Be kind.\n\nhello<|eot_id|>[assistant] "
    assert chat._tokens(HELLO) == chat.tokenizer(expected, add_special_tokens=False)["input_ids"]
    chat.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(RewriteError, match="chat template cannot be used"):
        chat.ask(HELLO)


def test_a_prompt_that_does_not_fit(tmp_path: Path) -> None:
    chat = LocalModel.from_folder(write_folder(tmp_path / "short", max_position_embeddings=64), "cpu", "float32")
    with pytest.raises(RewriteError, match="reads 64 tokens, but the instructions and the prompt have"):
        chat.ask(draft_messages("a fox", "normal"))


def test_folders_that_are_no_language_model(tmp_path: Path, random_folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LocalModel.from_folder(tmp_path / "none")
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="not a causal language model"):
        LocalModel.from_folder(tmp_path / "clip", "cpu")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((random_folder / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle files are not read"):
        LocalModel.from_folder(pickled, "cpu")
