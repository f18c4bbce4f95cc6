"""LoRA files: keys written by hand as each program writes them, and every format into every other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import read_weights_metadata
from openhunyuan.convert.lora import FORMATS, convert_lora, lora_state, parse_lora, read_lora, write_lora
from openhunyuan.convert.lora_keys import check_lora_file, lora_file
from openhunyuan.convert.lora_names import NAMINGS, layers, spell, table
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.lora import LoRA, LowRank, new_lora

CONFIG = DiTConfig(
    hidden_size=32,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6),
    text_dim=24,
    pooled_dim=12,
)
DOUBLE, SINGLE = "double_blocks.1", "single_blocks.0"


def on_meta(config: DiTConfig) -> DiT:
    with torch.device("meta"):
        return DiT(config)


MODEL = on_meta(CONFIG)


def random_lora(dtype: torch.dtype = torch.bfloat16, dense: bool = False) -> LoRA:
    """A LoRA on every layer with a matrix, with ranks, alphas and values that all differ."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for index, (name, shape) in enumerate(layers(MODEL)):
        if len(shape) > 1:
            rank, rows, columns = 2 + index % 3, shape[0], torch.Size(shape[1:]).numel()
            down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
            pairs[name] = (LowRank(down.to(dtype), up.to(dtype), float(rank * (index % 4 + 1)) / 2),)
    norm = {"double_blocks.0.txt_attn_k_norm.weight": torch.randn(16, generator=generator).to(dtype)}
    bias = {"single_blocks.1.modulation.linear.bias": torch.randn(96, generator=generator).to(dtype)}
    return LoRA(pairs, {**norm, **bias} if dense else {})


def assert_same(first: LoRA, second: LoRA) -> None:
    """Equal bit for bit: layers, rows, matrices, alphas."""
    assert list(first.pairs) == list(second.pairs)
    for name, pairs in first.pairs.items():
        for one, other in zip(pairs, second.pairs[name], strict=True):
            assert (one.alpha, one.start, one.down.dtype) == (other.alpha, other.start, other.down.dtype), name
            assert torch.equal(one.down, other.down) and torch.equal(one.up, other.up), name
    assert first.dense.keys() == second.dense.keys()
    assert all(torch.equal(first.dense[name], second.dense[name]) for name in first.dense)


def path_of(folder: Path, name: str) -> Path:
    return folder / (name if name == "peft" else f"{name}.safetensors")


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_format_through_every_other_and_back(first: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lora = random_lora(dtype)
    source = path_of(tmp_path, first)
    write_lora(source, lora, MODEL, first)
    assert_same(read_lora(source, MODEL), lora)
    for second in FORMATS:
        target = path_of(tmp_path / "then", second)
        convert_lora(source, target, second, CONFIG)
        assert_same(read_lora(target, MODEL), lora)
        # The file itself is the one that the original LoRA gives.
        wanted = lora_state(lora, MODEL, second)[0]
        written = load_file(lora_file(target))
        assert written.keys() == wanted.keys()
        assert all(torch.equal(written[key], tensor) for key, tensor in wanted.items())


def split_lora() -> LoRA:
    """As a trainer on split layers makes it: parts with their own ``down`` and rank, some parts missing."""
    generator = torch.Generator().manual_seed(2)

    def part(rows: int, rank: int, start: int) -> LowRank:
        down, up = torch.randn(rank, 32, generator=generator), torch.randn(rows, rank, generator=generator)
        return LowRank(down.bfloat16(), up.bfloat16(), rank / 2, start)

    return LoRA(
        {
            "double_blocks.0.img_attn_qkv": (part(32, 2, 0), part(32, 2, 32), part(32, 2, 64)),
            "double_blocks.1.txt_attn_qkv": (part(32, 4, 0), part(32, 1, 64)),
            "single_blocks.1.linear1": (part(32, 2, 32), part(128, 3, 96)),
        }
    )


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_parts_trained_apart_come_apart_again(first: str, second: str) -> None:
    """Fused names cannot hold them one by one, but what they hold splits into the same parts."""
    lora = split_lora()
    once = through(lora, first)
    twice = through(once, second)
    assert_same(through(twice, "onetrainer"), lora)
    for name, pairs in lora.pairs.items():
        wanted = torch.zeros(dict(layers(MODEL))[name])
        got = wanted.clone()
        for pair in pairs:
            wanted[pair.start : pair.stop] += pair.delta()
        for pair in twice.pairs[name]:
            got[pair.start : pair.stop] += pair.delta()
        torch.testing.assert_close(got, wanted)


def through(lora: LoRA, name: str) -> LoRA:
    state, config = lora_state(lora, MODEL, name)
    return parse_lora(state, MODEL, peft=config)


def test_parts_of_different_scale_keep_their_effect_in_fused_names() -> None:
    pairs = split_lora().pairs["double_blocks.0.img_attn_qkv"]
    scaled = tuple(LowRank(p.down.float(), p.up.float(), a, p.start) for p, a in zip(pairs, (1, 3, 7), strict=True))
    (fused,) = through(LoRA({"double_blocks.0.img_attn_qkv": scaled}), "kohya").pairs["double_blocks.0.img_attn_qkv"]
    assert fused.rank == 6
    torch.testing.assert_close(fused.delta(), torch.cat([pair.delta() for pair in scaled]))


def test_a_new_lora_stays_one_pair_when_split() -> None:
    """``up`` is all zero before training: no part owns a column, and nothing may be dropped."""
    lora = new_lora(MODEL, 2, generator=torch.Generator().manual_seed(0))
    for name in FORMATS:
        assert_same(through(lora, name), lora)


@pytest.mark.parametrize("name", ["kohya", "official", "comfyui", "diffusion-pipe"])
def test_dense_differences_are_kept_where_the_format_has_them(name: str) -> None:
    lora = random_lora(dense=True)
    assert_same(through(lora, name), lora)


def test_dense_differences_are_refused_where_it_has_not() -> None:
    for name in ("diffusers", "peft", "onetrainer"):
        with pytest.raises(UserError, match=f"{name} has no place for dense differences"):
            lora_state(random_lora(dense=True), MODEL, name)


# --- the formats as their own programs write them ----------------------------------------------------------------


def pair(rows: int, columns: int, seed: int, rank: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


QKV, PROJ, FC1, MOD, LINEAR1 = pair(96, 32, 1), pair(32, 32, 2), pair(128, 32, 3), pair(192, 32, 4), pair(224, 32, 5)
EXPECTED = {
    f"{DOUBLE}.img_attn_qkv": QKV,
    f"{DOUBLE}.txt_attn_proj": PROJ,
    f"{DOUBLE}.img_mlp.fc1": FC1,
    f"{DOUBLE}.img_mod.linear": MOD,
    f"{SINGLE}.linear1": LINEAR1,
}


def kohya(prefix: str, alpha: bool = True) -> dict[str, Tensor]:
    layer_names = ("double_blocks_1_img_attn_qkv", "double_blocks_1_txt_attn_proj", "double_blocks_1_img_mlp_fc1")
    layer_names += ("double_blocks_1_img_mod_linear", "single_blocks_0_linear1")
    state = {}
    for name, (down, up) in zip(layer_names, EXPECTED.values(), strict=True):
        state[f"{prefix}{name}.lora_down.weight"], state[f"{prefix}{name}.lora_up.weight"] = down, up
        if alpha:
            state[f"{prefix}{name}.alpha"] = torch.tensor(8.0)
    return state


def dotted(prefix: str, names: list[str], down: str, up: str, alpha: bool) -> dict[str, Tensor]:
    state = {}
    for name, (a, b) in zip(names, EXPECTED.values(), strict=True):
        state[f"{prefix}{name}.{down}"], state[f"{prefix}{name}.{up}"] = a, b
        if alpha:
            state[f"{prefix}{name}.alpha"] = torch.tensor(8.0)
    return state


def comfyui(prefix: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, Tensor]:
    names = ["double_blocks.1.img_attn.qkv", "double_blocks.1.txt_attn.proj", "double_blocks.1.img_mlp.0"]
    return dotted(prefix, [*names, "double_blocks.1.img_mod.lin", "single_blocks.0.linear1"], down, up, True)


DIFFUSERS = {
    "transformer_blocks.1.attn.to_q": (QKV[0], QKV[1][:32]),
    "transformer_blocks.1.attn.to_k": (QKV[0], QKV[1][32:64]),
    "transformer_blocks.1.attn.to_v": (QKV[0], QKV[1][64:]),
    "transformer_blocks.1.attn.to_add_out": PROJ,
    "transformer_blocks.1.ff.net.0.proj": FC1,
    "transformer_blocks.1.norm1.linear": MOD,
    "single_transformer_blocks.0.attn.to_q": (LINEAR1[0], LINEAR1[1][:32]),
    "single_transformer_blocks.0.attn.to_k": (LINEAR1[0], LINEAR1[1][32:64]),
    "single_transformer_blocks.0.attn.to_v": (LINEAR1[0], LINEAR1[1][64:96]),
    "single_transformer_blocks.0.proj_mlp": (LINEAR1[0], LINEAR1[1][96:]),
}
ONETRAINER = {
    "double_blocks.1.img_attn_qkv.0": (QKV[0], QKV[1][:32]),
    "double_blocks.1.img_attn_qkv.1": (QKV[0], QKV[1][32:64]),
    "double_blocks.1.img_attn_qkv.2": (QKV[0], QKV[1][64:]),
    "double_blocks.1.txt_attn_proj": PROJ,
    "double_blocks.1.img_mlp.fc0": FC1,
    "double_blocks.1.img_mod.linear": MOD,
    "single_blocks.0.linear1.0": (LINEAR1[0], LINEAR1[1][:32]),
    "single_blocks.0.linear1.1": (LINEAR1[0], LINEAR1[1][32:64]),
    "single_blocks.0.linear1.2": (LINEAR1[0], LINEAR1[1][64:96]),
    "single_blocks.0.linear1.3": (LINEAR1[0], LINEAR1[1][96:]),
}


def split(
    names: dict[str, tuple[Tensor, Tensor]], prefix: str, down: str, up: str, alpha: bool, underscores: bool = False
) -> dict[str, Tensor]:
    state = {}
    for name, (a, b) in names.items():
        key = prefix + (name.replace(".", "_") if underscores else name)
        state[f"{key}.{down}"], state[f"{key}.{up}"] = a, b
        if alpha:
            state[f"{key}.alpha"] = torch.tensor(8.0)
    return state


OURS = list(EXPECTED)
KOHYA_ENDS, PEFT_ENDS = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
WILD: dict[str, tuple[Callable[[], dict[str, Tensor]], float]] = {
    "musubi": (lambda: kohya("lora_unet_"), 8.0),
    "musubi without alpha": (lambda: kohya("lora_unet_", alpha=False), 4.0),
    "official image-to-video": (lambda: kohya("Hunyuan_video_I2V_lora_"), 8.0),
    "official under ComfyUI's prefix": (lambda: dotted("diffusion_model.", OURS, *PEFT_ENDS, False), 4.0),
    "diffusion-pipe": (lambda: dotted("transformer.", OURS, *PEFT_ENDS, False), 4.0),
    "fused with alpha": (lambda: dotted("transformer.", OURS, *PEFT_ENDS, True), 8.0),
    "no prefix": (lambda: dotted("", OURS, *PEFT_ENDS, False), 4.0),
    "PEFT on the official model": (lambda: dotted("base_model.model.", OURS, *PEFT_ENDS, False), 4.0),
    "PEFT adapter names": (
        lambda: dotted("transformer.", OURS, "lora_A.default.weight", "lora_B.default.weight", False),
        4.0,
    ),
    "ComfyUI": (lambda: comfyui("diffusion_model."), 8.0),
    "ComfyUI, A and B": (lambda: comfyui("diffusion_model.", *PEFT_ENDS), 8.0),
    "diffusers": (lambda: split(DIFFUSERS, "transformer.", *PEFT_ENDS, False), 4.0),
    "diffusers, old": (
        lambda: split(DIFFUSERS, "transformer.", "lora.down.weight", "lora.up.weight", False),
        4.0,
    ),
    "PEFT on diffusers": (lambda: split(DIFFUSERS, "base_model.model.", *PEFT_ENDS, False), 4.0),
    "OneTrainer": (lambda: split(ONETRAINER, "transformer.", *KOHYA_ENDS, True), 8.0),
    "OneTrainer, old": (lambda: split(DIFFUSERS, "lora_transformer_", *KOHYA_ENDS, True, underscores=True), 8.0),
    "musubi on diffusers' names": (lambda: split(DIFFUSERS, "lora_unet_", *KOHYA_ENDS, True, underscores=True), 8.0),
}


@pytest.mark.parametrize("name", WILD)
def test_reads_what_other_programs_write(name: str, tmp_path: Path) -> None:
    state, alpha = WILD[name][0](), WILD[name][1]
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors", MODEL)
    assert lora.pairs.keys() == EXPECTED.keys()
    for module, (down, up) in EXPECTED.items():
        got = torch.cat([pair.delta() for pair in lora.pairs[module]])
        torch.testing.assert_close(got, alpha / 4 * up @ down)


def test_diffusers_swaps_the_halves_of_the_last_modulation() -> None:
    """Ours is [shift; scale], theirs [scale; shift] (release fact B.13)."""
    down, up = pair(64, 32, 9)
    prefix = "transformer.norm_out.linear"
    state = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": torch.cat((up[32:], up[:32]))}
    (read,) = parse_lora(state, MODEL).pairs["final_layer.adaLN_modulation.1"]
    assert torch.equal(read.up, up)
    ours = {f"lora_unet_final_layer_adaLN_modulation_1.{end}": t for end, t in zip(KOHYA_ENDS, (down, up), strict=True)}
    (read,) = parse_lora(ours, MODEL).pairs["final_layer.adaLN_modulation.1"]
    assert torch.equal(read.up, up)


def test_comfyui_saves_differences_and_convolutions() -> None:
    """Its LoRA extraction writes norms and biases densely, and the patch convolution in its own shape."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "diffusion_model.double_blocks.1.img_attn.norm.query_norm.diff": torch.randn(16, generator=generator),
        "diffusion_model.single_blocks.0.linear2.diff_b": torch.randn(32, generator=generator),
        "diffusion_model.img_in.proj.lora_down.weight": torch.randn(3, 16, 1, 2, 2, generator=generator),
        "diffusion_model.img_in.proj.lora_up.weight": torch.randn(32, 3, 1, 1, 1, generator=generator),
    }
    lora = parse_lora(state, MODEL)
    query, bias, down, up = state.values()
    assert torch.equal(lora.dense["double_blocks.1.img_attn_q_norm.weight"], query)
    assert torch.equal(lora.dense["single_blocks.0.linear2.bias"], bias)
    torch.testing.assert_close(lora.pairs["img_in.proj"][0].delta(), up.flatten(1) @ down.flatten(1))
    again, _ = lora_state(lora, MODEL, "comfyui")
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_eight_bit_files_are_widened_exactly() -> None:
    state = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in kohya("lora_unet_", alpha=False).items()}
    lora = parse_lora(state, MODEL)
    (read,) = lora.pairs[f"{DOUBLE}.img_attn_qkv"]
    assert read.down.dtype == torch.bfloat16
    assert torch.equal(read.down.float(), QKV[0].to(torch.float8_e4m3fn).float())


def test_the_official_training_of_the_13b() -> None:
    """Its 325 adapted layers: 10 a double block, 3 a single block, 4 in the refiner, 1 at the end (release fact F)."""
    model = on_meta(DiTConfig())
    wanted = {"final_layer_linear"}
    wanted |= {f"txt_in_individual_token_refiner_blocks_{i}_mlp_fc{j}" for i in range(2) for j in (1, 2)}
    for stream in ("img", "txt"):
        for layer in ("mod_linear", "attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2"):
            wanted |= {f"double_blocks_{i}_{stream}_{layer}" for i in range(20)}
    wanted |= {f"single_blocks_{i}_{layer}" for i in range(40) for layer in ("modulation_linear", "linear1", "linear2")}
    assert len(wanted) == 325
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"Hunyuan_video_I2V_lora_{name}.{end}" for name in wanted for end in ends}
    with torch.device("meta"):
        lora = new_lora(model, 64)
    written, shapes = {}, dict(layers(model))
    for name, (update,) in lora.pairs.items():
        assert shapes[name] == (update.up.shape[0], update.down.shape[1])
        key = "Hunyuan_video_I2V_lora_" + name.replace(".", "_")
        written |= dict.fromkeys(f"{key}.{end}" for end in ends)
    assert written.keys() == expected


def test_names_are_unambiguous_and_are_the_formats_own() -> None:
    """No two layers of the 13B share a joined name, and ComfyUI's names are its own list of replacements."""
    model = on_meta(DiTConfig())
    names: dict[str, tuple[str, int]] = {}
    for module, shape in layers(model):
        for naming in NAMINGS:
            for spelled, place in spell(module, shape, naming):
                meaning = names.setdefault(spelled.replace(".", "_"), (place.module, place.start))
                assert meaning == (module, place.start), spelled
    assert len(table(model)) == len(names)

    for module, shape in layers(model):
        ours = f"{module}."
        for old, new in (
            ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
            ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
            ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
            ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
            ("_mod.linear.", "_mod.lin."),
            ("_attn_qkv.", "_attn.qkv."),
            ("mlp.fc1.", "mlp.0."),
            ("mlp.fc2.", "mlp.2."),
            ("_attn_q_norm.", "_attn.norm.query_norm."),
            ("_attn_k_norm.", "_attn.norm.key_norm."),
            (".q_norm.", ".norm.query_norm."),
            (".k_norm.", ".norm.key_norm."),
            ("_attn_proj.", "_attn.proj."),
            (".modulation.linear.", ".modulation.lin."),
            ("_in.mlp.2.", "_in.out_layer."),
            ("_in.mlp.0.", "_in.in_layer."),
        ):
            ours = ours.replace(old, new)
        assert [name for name, _ in spell(module, shape, "comfyui")] == [ours[:-1]]


def test_what_is_in_the_header(tmp_path: Path) -> None:
    lora = random_lora()
    write_lora(tmp_path / "k.safetensors", lora, MODEL, "kohya", dtype=torch.float16)
    metadata = read_weights_metadata(tmp_path / "k.safetensors")
    assert metadata["modelspec.architecture"] == "hunyuan-video/lora"
    assert metadata["ss_network_dim"] in {"2", "3", "4"}
    kinds = {key.rsplit(".", 1)[1]: tensor.dtype for key, tensor in load_file(tmp_path / "k.safetensors").items()}
    assert kinds == {"weight": torch.float16, "alpha": torch.float32}
    write_lora(tmp_path / "peft", lora, MODEL, "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"


def test_peft_configurations_say_the_alpha() -> None:
    state = split(DIFFUSERS, "base_model.model.", *PEFT_ENDS, False)
    config = {"lora_alpha": 2, "alpha_pattern": {"attn.to_k": 6, "^single_transformer_blocks\\.0\\.proj_mlp": 1}}
    lora = parse_lora(state, MODEL, peft=config)
    assert [pair.alpha for pair in lora.pairs[f"{DOUBLE}.img_attn_qkv"]] == [2, 6, 2]
    assert [pair.alpha for pair in lora.pairs[f"{SINGLE}.linear1"]] == [2, 6, 2, 1]
    stable = parse_lora(state, MODEL, peft={"lora_alpha": 2, "use_rslora": True})
    assert stable.pairs[f"{DOUBLE}.txt_attn_proj"][0].scale == 2 / 4**0.5


# --- refusals ---------------------------------------------------------------------------------------------------


def refused(state: dict[str, Tensor], tmp_path: Path, message: str, metadata: dict[str, str] | None = None) -> str:
    save_file({k: t.contiguous().clone() for k, t in state.items()}, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=message) as caught:
        read_lora(tmp_path / "bad.safetensors", MODEL)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_that_match_no_layer_are_all_listed(tmp_path: Path) -> None:
    state = kohya("lora_unet_")
    extra = {f"lora_te1_text_model_layers_{i}_mlp_fc1.lora_up.weight": torch.zeros(2, 2) for i in range(3)}
    text = refused(state | extra | {"loss": torch.zeros(1)}, tmp_path, "4 of 19 keys that belong to no layer")
    assert all(key in text for key in [*extra, "loss"])


@pytest.mark.parametrize(
    "keys",
    [
        ["diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"],
        ["lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "lora_unet_input_blocks_4_1_proj_in.lora_up.weight"],
        ["lora_unet_double_blocks_2_img_attn_qkv.lora_down.weight", "lora_unet_double_blocks_7_img_mlp_0.alpha"],
    ],
    ids=["another architecture", "an image model", "more blocks"],
)
def test_names_of_another_model(keys: list[str], tmp_path: Path) -> None:
    refused({key: torch.zeros(4, 4) for key in keys}, tmp_path, "is a LoRA for another model: no layer here is called")


def test_shapes_of_another_model(tmp_path: Path) -> None:
    state = kohya("lora_unet_")
    down, up = pair(144, 48, 0)
    key = "lora_unet_double_blocks_1_img_attn_qkv"
    wrong = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    refused(state | wrong, tmp_path, r"for another model.*is for a layer of 144 by 48, but here it is 96 by 32")
    key = "transformer.transformer_blocks.1.attn.to_q"
    wrong = {f"{key}.lora_A.weight": QKV[0], f"{key}.lora_B.weight": QKV[1]}
    refused(wrong, tmp_path, "layer of 96 by 32, but here it is 32 by 32")


def test_a_header_of_another_model(tmp_path: Path) -> None:
    metadata = {"modelspec.architecture": "Flux.1-dev/lora"}
    refused(kohya("lora_unet_"), tmp_path, "its header says Flux.1-dev/lora", metadata)


def test_flux_has_the_same_names_and_sizes_but_fewer_blocks(tmp_path: Path) -> None:
    model = on_meta(CONFIG.model_copy(update={"num_double_blocks": 20, "num_single_blocks": 40}))
    blocks = [f"double_blocks.{i}.img_attn.qkv" for i in range(19)]
    state = {}
    for name in [*blocks, *(f"single_blocks.{i}.linear2" for i in range(38))]:
        rows, columns = (96, 32) if "double" in name else (32, 160)
        state |= {f"{name}.lora_A.weight": torch.zeros(1, columns), f"{name}.lora_B.weight": torch.zeros(rows, 1)}
    with pytest.raises(UserError, match="which are Flux's"):
        parse_lora(state, model)
    del state["double_blocks.18.img_attn.qkv.lora_A.weight"], state["double_blocks.18.img_attn.qkv.lora_B.weight"]
    assert len(parse_lora(state, model).pairs) == 18 + 38


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lokr_w1", "LoKr"),
        ("lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a", "LoHa"),
        ("lora_unet_double_blocks_0_img_attn_qkv.dora_scale", "DoRA"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "DoRA"),
    ],
)
def test_other_kinds_of_adapters_are_named(key: str, kind: str, tmp_path: Path) -> None:
    refused(kohya("lora_unet_") | {key: torch.zeros(2)}, tmp_path, f"holds {kind} weights")


def test_broken_pairs(tmp_path: Path) -> None:
    state = kohya("lora_unet_")
    key = "lora_unet_double_blocks_1_img_attn_qkv"
    refused({k: t for k, t in state.items() if k != f"{key}.lora_up.weight"}, tmp_path, "lacks its up matrix")
    refused({f"{key}.alpha": torch.tensor(1.0)}, tmp_path, "lacks its down and up matrix")
    refused(state | {f"{key}.lora_up.weight": torch.zeros(96, 3)}, tmp_path, "is 4 in one matrix and 3 in the other")
    refused(state | {f"{key}.alpha": torch.tensor(float("inf"))}, tmp_path, "alpha of .* is inf")
    twice = state | split(DIFFUSERS, "transformer.", *PEFT_ENDS, False)
    refused(twice, tmp_path, "changes the same rows of double_blocks.1.img_mod.linear twice")


def test_files_that_are_no_loras(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "nothing.safetensors", MODEL)
    save_file({"double_blocks.0.img_attn_qkv.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is not a LoRA"):
        check_lora_file(tmp_path / "weights.safetensors")
    torch.save(kohya("lora_unet_"), tmp_path / "lora.pt")
    with pytest.raises(UserError, match="is a pickle"):
        check_lora_file(tmp_path / "lora.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="truncated"):
        read_lora(tmp_path / "cut.safetensors", MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        lora_file(tmp_path / "empty")
    with pytest.raises(UserError, match=r"2 \.safetensors files"):
        lora_file(tmp_path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    lora = random_lora()
    with pytest.raises(UserError, match="Unknown LoRA format koya; did you mean kohya"):
        write_lora(tmp_path / "x.safetensors", lora, MODEL, "koya")
    with pytest.raises(UserError, match=r"\.safetensors file"):
        write_lora(tmp_path / "x.pt", lora, MODEL, "kohya")
    with pytest.raises(UserError, match="adapter is a folder"):
        write_lora(tmp_path / "x.safetensors", lora, MODEL, "peft")
    with pytest.raises(UserError, match="layers that this model does not have"):
        write_lora(tmp_path / "x.safetensors", lora, on_meta(CONFIG.model_copy(update={"num_single_blocks": 1})))
    assert list(tmp_path.iterdir()) == []
