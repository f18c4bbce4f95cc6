from types import SimpleNamespace

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.captions import CaptionAssembly
from openhunyuan.latents.shards import LatentSample, collate

FIELDS = {
    "short": "a dog",
    "dense": "a brown dog runs over grass",
    "style": "film",
    "tags": ["hd"],
    "camera": "pan left",
}


class Lengths:
    """A text's states are as many as it has words; remembers what it was asked."""

    def __init__(self):
        self.asked: list[tuple[str, str]] = []

    def encode(self, prompts, data_type="video"):
        self.asked += [(data_type, prompt) for prompt in prompts]
        sizes = [len(prompt.split()) for prompt in prompts]
        mask = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
        pooled = torch.tensor([[float(len(prompt))] for prompt in prompts])
        return SimpleNamespace(states=torch.ones(len(prompts), max(sizes), 2), mask=mask, pooled=pooled)


def sample(frames=2, fields=FIELDS, prompt="stored words"):
    metadata = {"caption": fields} if fields else {}
    return LatentSample(torch.zeros(4, frames, 2, 2), torch.zeros(2, 2), torch.zeros(1), prompt, metadata)


def test_every_epoch_has_its_own_text_and_the_same_key_the_same():
    texts = CaptionAssembly(Lengths(), seed=0)
    drawn = [texts.prompt(sample(), 5, epoch) for epoch in range(60)]
    assert drawn == [CaptionAssembly(Lengths(), seed=0).prompt(sample(), 5, epoch) for epoch in range(60)]
    assert drawn != [CaptionAssembly(Lengths(), seed=1).prompt(sample(), 5, epoch) for epoch in range(60)]
    assert len(set(drawn)) > 15 and {"a dog", "a brown dog runs over grass"} < set(drawn)  # dropout to one part
    both = [text.lower() for text in drawn if "A dog" in text and "A brown dog" in text]
    assert len({text.index("a dog") < text.index("brown dog") for text in both}) == 2  # permutation


def test_states_follow_the_text_and_what_is_known_is_not_encoded_again():
    text = Lengths()
    texts = CaptionAssembly(text, seed=0, remembered=3)
    made = texts.apply([sample(), sample(1), sample(fields=None)], [(0, 0), (0, 0), (9, 0)])
    assert [len(s.states) for s in made] == [len(s.prompt.split()) for s in made]
    assert made[2].prompt == "stored words" and made[0].prompt == made[1].prompt
    assert {kind for kind, _ in text.asked} == {"image", "video"}
    asked = len(text.asked)
    texts.apply([sample()], [(0, 0)])
    assert len(text.asked) == asked
    texts.apply([sample()] * 8, [(i, 1) for i in range(8)])
    assert len(texts._held) == 3
    assert set(collate(made[:1])) == {"latents", "text_states", "text_mask", "pooled"}


def test_a_caption_that_is_none_names_its_sample():
    with pytest.raises(UserError, match=r"caption of sample 4 .*Unknown field shot_typ; did you mean shot_type"):
        CaptionAssembly(Lengths(), 0).prompt(sample(fields={"short": "a", "dense": "b", "shot_typ": "c"}), 4, 0)
