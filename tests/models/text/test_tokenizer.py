"""The trained tokenizers, loaded the way users load them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openhunyuan.base.errors import UserError
from openhunyuan.models.text import tokenizer as tok


def test_llm_tokenizer_layout(llm_dir: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(str(llm_dir))
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (tok.BOS, tok.EOS, tok.PAD)
    assert loaded.padding_side == "right"
    ids = loaded("<|start_header_id|>user<|end_header_id|>\n\nred<|eot_id|>")["input_ids"]
    tokens = loaded.convert_ids_to_tokens(ids)
    assert tokens[:2] == [tok.BOS, tok.HEADER_OPEN]
    assert tok.HEADER_CLOSE in tokens
    assert tokens[-1] == tok.EOT


def test_known_words_are_single_tokens_with_their_blank(llm_dir: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(str(llm_dir))
    assert loaded.tokenize("a red circle") == ["a", "Ġred", "Ġcircle"]


@pytest.mark.parametrize("text", ["a zebra wearing sunglasses", "ein Bär über Köln", "🦓 斑马", "x\n\ty"])
def test_unknown_words_survive_as_bytes(llm_dir: Path, clip_dir: Path, text: str) -> None:
    llm = AutoTokenizer.from_pretrained(str(llm_dir))
    assert llm.decode(llm(text)["input_ids"], skip_special_tokens=True) == text.lower()
    clip = AutoTokenizer.from_pretrained(str(clip_dir))
    short = " ".join(text.split())[:6]
    assert clip.decode(clip(short)["input_ids"], skip_special_tokens=True) == short.lower()


def test_clip_tokenizer_folds_case_and_blanks(clip_dir: Path) -> None:
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        loaded = loader.from_pretrained(str(clip_dir))
        ids = loaded("A  Red\nCIRCLE")["input_ids"]
        assert ids == loaded("a red circle")["input_ids"]
        assert (ids[0], ids[-1]) == (loaded.bos_token_id, loaded.eos_token_id)
        assert loaded.eos_token_id == max(loaded.get_vocab().values())


def test_training_is_deterministic() -> None:
    texts = ["a red circle", "a blue square moves"] * 2
    one, two = (tok.train_llm_tokenizer(texts, 290).to_str() for _ in range(2))
    assert one == two


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="at least 262"):
        tok.train_llm_tokenizer(["a"], 261)
