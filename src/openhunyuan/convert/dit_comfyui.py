"""The DiT in ComfyUI: the names that it saves, and those that older files keep below a prefix."""

from __future__ import annotations

from openhunyuan.convert.names import NameMap, Rule, same

PREFIXES = ("model.model.", "model.diffusion_model.", "diffusion_model.", "")
"""What single files put before every name; the first is what ComfyUI writes."""

_REFINER = "txt_in.individual_token_refiner.blocks.{i}"
_DOUBLE, _SINGLE = "double_blocks.{i}", "single_blocks.{i}"


def _kept(*modules: str) -> tuple[Rule, ...]:
    return tuple(same(module, module) for module in modules)


NAMES = NameMap(
    (
        *_kept("img_in.proj", "vector_in.in_layer", "vector_in.out_layer", "txt_in.input_embedder"),
        *_kept(f"{_REFINER}.norm1", f"{_REFINER}.norm2", f"{_REFINER}.adaLN_modulation.1"),
        *_kept("final_layer.linear", "final_layer.adaLN_modulation.1"),
        *_kept(f"{_SINGLE}.linear1", f"{_SINGLE}.linear2"),
        *(
            same(f"{embedder}.mlp.{layer}", f"{embedder}.{name}")
            for embedder in ("time_in", "guidance_in", "txt_in.t_embedder")
            for layer, name in ((0, "in_layer"), (2, "out_layer"))
        ),
        same("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"),
        same("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
        same(f"{_REFINER}.self_attn_qkv", f"{_REFINER}.self_attn.qkv"),
        same(f"{_REFINER}.self_attn_proj", f"{_REFINER}.self_attn.proj"),
        same(f"{_REFINER}.mlp.fc1", f"{_REFINER}.mlp.0"),
        same(f"{_REFINER}.mlp.fc2", f"{_REFINER}.mlp.2"),
        *(
            rule
            for stream in ("img", "txt")
            for rule in (
                same(f"{_DOUBLE}.{stream}_mod.linear", f"{_DOUBLE}.{stream}_mod.lin"),
                same(f"{_DOUBLE}.{stream}_attn_qkv", f"{_DOUBLE}.{stream}_attn.qkv"),
                same(f"{_DOUBLE}.{stream}_attn_q_norm.weight", f"{_DOUBLE}.{stream}_attn.norm.query_norm.scale"),
                same(f"{_DOUBLE}.{stream}_attn_k_norm.weight", f"{_DOUBLE}.{stream}_attn.norm.key_norm.scale"),
                same(f"{_DOUBLE}.{stream}_attn_proj", f"{_DOUBLE}.{stream}_attn.proj"),
                same(f"{_DOUBLE}.{stream}_mlp.fc1", f"{_DOUBLE}.{stream}_mlp.0"),
                same(f"{_DOUBLE}.{stream}_mlp.fc2", f"{_DOUBLE}.{stream}_mlp.2"),
            )
        ),
        same(f"{_SINGLE}.modulation.linear", f"{_SINGLE}.modulation.lin"),
        same(f"{_SINGLE}.q_norm.weight", f"{_SINGLE}.norm.query_norm.scale"),
        same(f"{_SINGLE}.k_norm.weight", f"{_SINGLE}.norm.key_norm.scale"),
    )
)
