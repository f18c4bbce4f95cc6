import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.models.load import load_model, load_vae, save_vae
from openhunyuan.recipes.world_latents import Encoders, LatentBatches, WorldLatents, draw, encode_world
from openhunyuan.recipes.world_source import WorldClips, heldout_clips, to_video
from openhunyuan.tiny import world
from openhunyuan.train.config import BatchShape, Stage

SHAPE = BatchShape(batch_size=3, num_frames=5, height=32, width=32)


def test_clips_are_a_function_of_seed_and_step():
    stage = Stage(name="s", steps=9, shapes=(SHAPE,), frame_intervals=(1, 2))
    a, b, c = (WorldClips(seed).batch(step, stage, SHAPE)["video"] for seed, step in ((0, 4), (0, 4), (0, 5)))
    assert a.shape == (3, 3, 5, 32, 32) and a.min() >= -1 and a.max() <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_window_moves_less_than_the_whole_scene():
    scene = world.Scene("circle", "red", "large", "right", "black", "plain")
    source, rng = WorldClips(0), np.random.default_rng(0)
    slow = source._clip(scene, rng, Stage(name="s", steps=1, shapes=(SHAPE,), frame_intervals=(1,)), SHAPE)
    fast = source._clip(scene, rng, Stage(name="s", steps=1, shapes=(SHAPE,)), SHAPE)
    change = [np.abs(c[-1].astype(int) - c[0]).mean() for c in (slow, fast)]
    assert 0 < change[0] < 0.6 * change[1]


def test_validation_clips_are_held_out_combinations():
    assert heldout_clips(4, 1, 32).shape == (4, 3, 1, 32, 32)
    assert all(s.heldout for s in world.heldout_scenes(4, 1))


def test_training_samples_are_never_held_out():
    spec = WorldLatents(count=200, num_frames=1, size=32, seed=3)
    drawn = [draw(spec, i) for i in range(200)]
    assert not any(scene.heldout for scene, _ in drawn)
    assert {True, False} == {prompt == scene.prompt for scene, prompt in drawn}
    assert drawn[7] == draw(spec, 7)


def encoders(model_folder: Path) -> Encoders:
    return Encoders(model_folder / "vae", model_folder / "text_encoder", model_folder / "text_encoder_2")


@pytest.fixture(scope="module")
def encoded(micro_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    spec = WorldLatents(count=6, num_frames=5, size=32, seed=1)
    return folder, spec, encode_world(folder, spec, encoders(Path(micro_model_folder)))


def test_a_sample_is_what_the_vae_and_the_text_encoder_say(encoded, micro_model_folder):
    _, spec, dataset = encoded
    model = load_model(str(micro_model_folder))
    scene, prompt = draw(spec, 2)
    with torch.inference_mode():
        latents = model.vae.encode_latents(to_video(world.render(scene, 5, 32, 32))[None])[0]
        text = model.text.encode([prompt])
    held = dataset[2]
    assert held.prompt == prompt
    assert torch.allclose(held.latents.float(), latents, atol=2e-3, rtol=2e-3)
    assert torch.allclose(held.states.float(), text.states[0][text.mask[0]], atol=5e-3, rtol=5e-3)


def test_complete_shards_are_kept_and_those_of_other_weights_are_not(encoded, micro_model_folder, tmp_path):
    folder, spec, _ = encoded
    shard = folder / "shard-00000.safetensors"
    before = shard.stat().st_mtime_ns
    encode_world(folder, spec, encoders(Path(micro_model_folder)))
    assert shard.stat().st_mtime_ns == before
    other = tmp_path / "other"
    shutil.copytree(micro_model_folder, other)
    vae = load_vae(other / "vae")
    with torch.no_grad():
        vae.quant_conv.bias += 1
    save_vae(other / "vae", vae)
    encode_world(folder, spec, encoders(other))
    assert shard.stat().st_mtime_ns != before


def test_several_processes_write_the_shards_of_one(encoded, micro_model_folder, tmp_path):
    _, spec, alone = encoded
    together = encode_world(tmp_path, spec, encoders(Path(micro_model_folder)), workers=2, frames_per_shard=15)
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert [s.prompt for s in together.samples] == [s.prompt for s in alone.samples]
    for one, other in zip(together.samples, alone.samples, strict=True):
        assert torch.allclose(one.latents.float(), other.latents.float(), atol=2e-3, rtol=2e-3)


def test_motions_named_twice_come_twice_as_often():
    spec = WorldLatents(count=600, num_frames=1, size=32, camera_prob=0.0, motions=("left", "orbits", "orbits"))
    seen = Counter(draw(spec, i)[0].motion for i in range(spec.count))
    assert set(seen) == {"left", "orbits"} and 1.6 < seen["orbits"] / seen["left"] < 2.5


def test_batches_come_from_the_set_of_the_asked_shape(encoded):
    source = LatentBatches([encoded[2]], seed=0)
    stage = Stage(name="s", steps=9, shapes=(SHAPE,))
    batch = source.batch(0, stage, SHAPE)
    assert batch["latents"].shape[0] == 3 and batch["latents"].shape[2:] == (2, 4, 4)
    assert torch.equal(batch["latents"], source.batch(0, stage, SHAPE)["latents"])
    prompts = [
        tuple(b["latents"].flatten(1)[:, 0].tolist())
        for b in (source.batch(0, stage, SHAPE), source.batch(1, stage, SHAPE))
    ]
    assert set(prompts[0]).isdisjoint(prompts[1])  # an epoch shows every sample once


def test_keys_name_the_sample_and_its_epoch_and_another_shape_is_refused(encoded):
    source = LatentBatches([encoded[2], encoded[2]], seed=0)
    stage, count = Stage(name="s", steps=99, shapes=(SHAPE,)), len(encoded[2])
    keys = torch.cat([source.batch(step, stage, SHAPE)["keys"] for step in range(2 * count)])
    assert len({tuple(key) for key in keys.tolist()}) == len(keys) == 6 * count
    assert keys[:, 0].unique().tolist() == list(range(2 * count))  # of both sets
    assert keys[:, 1].unique().tolist() == list(range(3))
    with pytest.raises(UserError, match="needs latents of 1x2x2, but the data holds 2x4x4"):
        source.batch(0, stage, BatchShape(batch_size=1, num_frames=1, height=16, width=16))
