"""The DiT against diffusers as an independent implementation, and its own invariants."""

import copy

import pytest
import torch
from torch import Tensor

from openhunyuan.convert.dit_diffusers import to_diffusers
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT, sinusoid, trim_text
from openhunyuan.ops.rope import rope_freqs

SMALL = DiTConfig(
    hidden_size=96,
    num_heads=4,
    num_double_blocks=2,
    num_single_blocks=2,
    rope_axes_dim=(4, 10, 10),
    text_dim=40,
    pooled_dim=24,
)
CONFIGS = {
    "guidance": SMALL,
    "no guidance": SMALL.model_copy(update={"guidance_embed": False}),
    "one refiner, narrow mlp, deep": SMALL.model_copy(
        update={"num_refiner_blocks": 1, "mlp_ratio": 2.0, "num_double_blocks": 1, "num_single_blocks": 4}
    ),
    "33 input channels": SMALL.model_copy(update={"in_channels": 33, "rope_theta": 100.0}),
}


def random_dit(config: DiTConfig, seed: int = 0) -> DiT:
    """A DiT whose every parameter matters: nothing is zero, norms' gains differ from one."""
    torch.manual_seed(seed)
    model = DiT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
        else:
            torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model


def inputs(config: DiTConfig, lengths: tuple[int, ...], max_length: int = 9, seed: int = 1) -> dict[str, Tensor]:
    """A batch with right-padded text; padding holds large values, so that a leak shows."""
    rng = torch.Generator().manual_seed(seed)
    batch = len(lengths)
    mask = torch.arange(max_length) < torch.tensor(lengths)[:, None]
    states = torch.randn(batch, max_length, config.text_dim, generator=rng)
    batch_inputs = {
        "latents": torch.randn(batch, config.in_channels, 3, 4, 6, generator=rng),
        "timestep": torch.linspace(997.093, 12.5, batch),
        "text_states": torch.where(mask[..., None], states, 50 * states),
        "text_mask": mask,
        "pooled": torch.randn(batch, config.pooled_dim, generator=rng),
    }
    return batch_inputs | ({"guidance": torch.full((batch,), 6016.0)} if config.guidance_embed else {})


def in_diffusers(model: DiT, image_condition_type: str | None = None) -> torch.nn.Module:
    """The same network as diffusers builds it."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = model.config
    other = HunyuanVideoTransformer3DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_double_blocks,
        num_single_layers=config.num_single_blocks,
        num_refiner_layers=config.num_refiner_blocks,
        mlp_ratio=config.mlp_ratio,
        text_embed_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_axes_dim,  # pyright: ignore[reportArgumentType]
        guidance_embeds=config.guidance_embed,
        image_condition_type=image_condition_type,
    ).eval()
    other.load_state_dict(to_diffusers(model.state_dict()), strict=True)
    return other


def run_diffusers(other: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return other(
        hidden_states=batch["latents"],
        timestep=batch["timestep"],
        encoder_hidden_states=batch["text_states"],
        encoder_attention_mask=batch["text_mask"].long(),
        pooled_projections=batch["pooled"],
        guidance=batch.get("guidance"),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("lengths", [(5, 7), (9, 3), (6, 6)])
def test_forward_equals_diffusers(config: DiTConfig, lengths: tuple[int, int]) -> None:
    model = random_dit(config)
    batch = inputs(config, lengths)
    with torch.no_grad():
        ours, theirs = model(**batch), run_diffusers(in_diffusers(model), batch)
    assert theirs.abs().mean() > 0.1, "the comparison would be empty"
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("guidance", [True, False])
def test_token_replace_equals_diffusers(guidance: bool) -> None:
    config = SMALL.model_copy(update={"guidance_embed": guidance})
    model, batch = random_dit(config), inputs(config, (5, 7))
    first = torch.tensor([[True, False, False]] * 2)
    with torch.no_grad():
        ours, theirs = model(**batch, clean_frames=first), run_diffusers(in_diffusers(model, "token_replace"), batch)
        assert (ours - model(**batch)).abs().max() > 1e-2, "the clean frame would not matter"
    assert (ours - theirs).abs().max() <= 1e-5
    # The path with gradients is another one.
    torch.testing.assert_close(model(**batch, clean_frames=first).detach(), ours, atol=2e-6, rtol=0)


def test_each_sample_has_its_own_clean_frames() -> None:
    """What a batch mixes (none, first, first and last) gives what each sample gives alone; no frame is none given."""
    model, batch = random_dit(SMALL), inputs(SMALL, (5, 7, 6))
    clean = torch.tensor([[False, False, False], [True, False, False], [True, False, True]])
    with torch.no_grad():
        together = model(**batch, clean_frames=clean)
        for i in range(3):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            alone = model(**one, clean_frames=clean[i : i + 1]) if i else model(**one)
            torch.testing.assert_close(together[i : i + 1], alone, atol=2e-6, rtol=0)


def test_clean_frames_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        random_dit(SMALL)(**inputs(SMALL, (3,)), clean_frames=torch.tensor([[True, False]]))


def test_released_size_keys_and_parameters() -> None:
    with torch.device("meta"):
        distilled, plain = DiT(DiTConfig()), DiT(DiTConfig(guidance_embed=False))
    assert (len(distilled.state_dict()), sum(p.numel() for p in distilled.parameters())) == (856, 12_821_012_544)
    assert (len(plain.state_dict()), sum(p.numel() for p in plain.parameters())) == (852, 12_810_782_784)
    assert len(to_diffusers(distilled.state_dict())) == 1264


def test_released_small_variant() -> None:
    small = DiTConfig(
        hidden_size=480,
        num_heads=5,
        num_double_blocks=6,
        num_single_blocks=12,
        rope_axes_dim=(12, 42, 42),
        guidance_embed=False,
    )
    with torch.device("meta"):
        model = DiT(small)
    assert len(model.state_dict()) == 292
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 103.9


def test_released_shapes() -> None:
    with torch.device("meta"):
        state = DiT(DiTConfig()).state_dict()
    expected = {
        "img_in.proj.weight": (3072, 16, 1, 2, 2),
        "txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1.weight": (6144, 3072),
        "double_blocks.19.img_mod.linear.bias": (18432,),
        "double_blocks.0.txt_attn_k_norm.weight": (128,),
        "single_blocks.39.linear1.weight": (21504, 3072),
        "single_blocks.0.linear2.weight": (3072, 15360),
        "final_layer.linear.weight": (64, 3072),
        "guidance_in.mlp.0.weight": (3072, 256),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected


def test_timestep_embedding_fixture() -> None:
    embedding = sinusoid(torch.tensor([997.093]))[0]
    assert embedding.shape == (256,)
    torch.testing.assert_close(
        embedding[[0, 1, 2, 127, 128, 129, 130, 255]],
        torch.tensor([-0.354753, -0.456224, -0.881853, 0.994265, -0.934960, -0.889865, 0.471525, 0.106943]),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("lengths", [(4,), (5, 5), (2, 7), (1, 9, 6)])
def test_trimming_equals_the_masked_form(lengths: tuple[int, ...]) -> None:
    """Padding never changes the result: untrimmed with a key mask, trimmed, and one sample at a time agree."""
    model = random_dit(SMALL)
    batch = inputs(SMALL, lengths)
    with torch.no_grad():
        ours = model(**batch)
        cos, sin = rope_freqs((3, 2, 3), SMALL.rope_axes_dim)
        masked = model._core(**batch, cos=cos, sin=sin)
        alone = [model(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(len(lengths))]
    torch.testing.assert_close(ours, masked, atol=2e-6, rtol=0)
    torch.testing.assert_close(ours, torch.cat(alone), atol=2e-6, rtol=0)


def test_what_the_padding_holds_never_matters() -> None:
    model, batch = random_dit(SMALL), inputs(SMALL, (3, 6))
    other = batch | {"text_states": torch.where(batch["text_mask"][..., None], batch["text_states"], -7.0)}
    with torch.no_grad():
        assert torch.equal(model(**batch), model(**other))


def test_trim_text_drops_the_mask_where_lengths_allow() -> None:
    states = torch.randn(2, 6, 4)
    trimmed, mask = trim_text(states, torch.arange(6) < torch.tensor([[4], [4]]))
    assert trimmed.shape == (2, 4, 4)
    assert mask is None
    trimmed, mask = trim_text(states, torch.arange(6) < torch.tensor([[2], [5]]))
    assert trimmed.shape == (2, 5, 4)
    assert mask is not None
    assert mask.sum(1).tolist() == [2, 5]


@pytest.mark.parametrize("row", [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_trim_text_refuses_other_layouts(row: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="padding on the right"):
        trim_text(torch.randn(1, 3, 4), torch.tensor([row], dtype=torch.bool))


def test_forward_refuses_what_does_not_fit() -> None:
    batch = inputs(SMALL, (3,))
    with pytest.raises(ValueError, match="needs an embedded guidance"):
        random_dit(SMALL)(**{name: value for name, value in batch.items() if name != "guidance"})
    with pytest.raises(ValueError, match="does not take"):
        random_dit(CONFIGS["no guidance"])(**batch)
    with pytest.raises(ValueError, match="multiple of"):
        random_dit(SMALL)(**(batch | {"latents": torch.randn(1, 16, 3, 5, 6)}))


def test_config_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="add up to"):
        DiTConfig(hidden_size=96, num_heads=4)
    with pytest.raises(ValueError, match="num_heads"):
        DiTConfig(hidden_size=100, num_heads=24)
    with pytest.raises(ValueError, match="hiden_size"):
        DiTConfig.model_validate({"hiden_size": 96})
    assert DiTConfig.model_validate_json(SMALL.model_dump_json()) == SMALL


def test_init_weights_starts_at_zero_and_everything_learns() -> None:
    torch.manual_seed(0)
    model = DiT(SMALL)
    model.init_weights()
    batch = inputs(SMALL, (3, 7))
    target = torch.randn(2, 16, 3, 4, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    untouched = copy.deepcopy(model.state_dict())
    assert model(**batch).abs().max() == 0
    losses = []
    for _ in range(25):
        loss = (model(**batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    still = [name for name, value in model.state_dict().items() if torch.equal(value, untouched[name])]
    assert not still, f"never trained: {still}"


def test_init_weights_is_keyed_by_its_generator() -> None:
    first, second, third = DiT(SMALL), DiT(SMALL), DiT(SMALL)
    for model, seed in ((first, 1), (second, 1), (third, 2)):
        model.init_weights(torch.Generator().manual_seed(seed))
    key = "double_blocks.0.img_attn_qkv.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], third.state_dict()[key])


def test_bf16_autocast_and_bf16_weights_stay_close() -> None:
    model, batch = random_dit(SMALL), inputs(SMALL, (5, 7))
    with torch.no_grad():
        exact = model(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(**batch).float()
        cast = model.bfloat16()(**batch)
    assert cast.dtype == torch.bfloat16
    for rough in (autocast, cast.float()):
        assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_training_and_inference_paths_agree() -> None:
    model, batch = random_dit(SMALL), inputs(SMALL, (5, 7))
    with torch.no_grad():
        inference = model(**batch)
    torch.testing.assert_close(model(**batch).detach(), inference, atol=2e-6, rtol=0)


def test_converter_refuses_foreign_keys() -> None:
    state = random_dit(SMALL).state_dict()
    with pytest.raises(KeyError, match="not a module"):
        to_diffusers(state | {"triple_blocks.0.linear.weight": torch.zeros(1)})


def test_core_is_one_static_graph() -> None:
    """No graph break, in training and in inference; the backend that only traces keeps the test short."""
    model, batch = (
        random_dit(SMALL.model_copy(update={"num_double_blocks": 1, "num_single_blocks": 1})),
        inputs(SMALL, (5, 7)),
    )
    with torch.no_grad():
        eager = model(**batch)
    model.compile_core(backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch), eager)
    model(**batch).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
