from collections import Counter

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import LatentSize
from openhunyuan.latents.plan import BatchPlan, CostModel
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.flops import dit_flops

IMAGE, WIDE, SHORT, LONG = (1, 8, 8), (1, 6, 10), (3, 8, 8), (9, 8, 8)
SHAPES = [IMAGE] * 30 + [WIDE] * 10 + [SHORT] * 20 + [LONG] * 12
LARGEST = {IMAGE: 4, WIDE: 4, SHORT: 2, LONG: 1}
COST = CostModel(0.5, 1.0, 0.01)


def plan(**changes) -> BatchPlan:
    fields = {"cost": COST, "global_batch": 20, "images_to_videos": (1, 4), "seed": 3} | changes
    return BatchPlan(SHAPES, LARGEST, **fields)


def keys(step) -> list[tuple[int, int]]:
    return [key for rank in step.ranks for micro in rank for key in micro.keys]


def test_the_samples_of_a_step_do_not_depend_on_the_world():
    for number in (0, 7, 1000):
        one, four = plan().step(number), plan(world_size=4).step(number)
        assert sorted(keys(one)) == sorted(keys(four)) and len(four.ranks) == 4
        assert plan(world_size=4).step(number) == four
    assert plan(seed=4).step(0) != plan().step(0)


def test_the_ratio_is_exact_in_every_step_and_every_sample_comes_once_an_epoch():
    made = plan()
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(40):
        step = keys(made.step(number))
        assert sum(SHAPES[sample][0] == 1 for sample, _ in step) == 4
        seen.update(step)
    assert set(seen.values()) == {1}
    images = Counter(epoch for sample, epoch in seen if SHAPES[sample][0] == 1)
    assert images[0] == images[1] == images[2] == 40  # 160 drawn of 40 images
    lengths = Counter(SHAPES[sample] for sample, _ in seen)
    assert lengths[SHORT] / lengths[LONG] == pytest.approx(20 / 12, rel=0.02)


def test_every_batch_is_mixed():
    made = plan()
    for number in range(20):
        held = {SHAPES[sample] for sample, _ in keys(made.step(number))}
        assert {SHORT, LONG} <= held and held & {IMAGE, WIDE}


def test_every_batch_holds_images_of_both_scales_in_their_ratio():
    large = (1, 16, 16)
    shapes, largest = [*SHAPES, *[large] * 3], LARGEST | {large: 1}
    made = BatchPlan(shapes, largest, COST, 20, images_to_videos=(3, 2), image_scales=((64, 2), (128, 1)))
    for number in range(20):
        step = made.step(number)
        images = [shapes[sample] for sample, _ in keys(step) if shapes[sample][0] == 1]
        assert len(images) == 12 and images.count(large) == 4 and set(images) > {large}
        assert all(len(micro.keys) == 1 for rank in step.ranks for micro in rank if micro.bucket.shape == large)
    assert "images at 128 pixels: 1 of 3 parts" in made.report(steps=2)
    with pytest.raises(UserError, match="Every batch needs images of about 128x128 pixels; there are none"):
        BatchPlan(SHAPES, LARGEST, COST, 20, images_to_videos=(1, 4), image_scales=((64, 1), (128, 1)))


def test_costs_are_nearly_equal_where_a_bucket_at_random_for_each_process_is_not():
    made = plan(world_size=4, global_batch=40)
    imbalance = [made.step(number).imbalance for number in range(50)]
    assert max(imbalance) < 1.15
    a_bucket_each = [COST.batch(LatentSize(*shape).tokens(), LARGEST[shape]) for shape in LARGEST]
    assert max(a_bucket_each) / (sum(a_bucket_each) / 4) > 1.5


def test_micro_batches_are_of_one_bucket_small_enough_and_weighted_by_tokens():
    for world in (1, 3):
        step = plan(world_size=world).step(5)
        parts = [micro for rank in step.ranks for micro in rank]
        assert sum(micro.weight for micro in parts) == pytest.approx(1)
        tokens = sum(len(micro.keys) * micro.bucket.tokens for micro in parts)
        for micro in parts:
            assert len(micro.keys) <= micro.bucket.largest
            assert {SHAPES[sample] for sample, _ in micro.keys} == {micro.bucket.shape}
            assert micro.weight == pytest.approx(len(micro.keys) * micro.bucket.tokens / tokens)


def test_nothing_is_left_out_without_a_word():
    made = BatchPlan([*SHAPES, (5, 2, 2)], LARGEST | {LONG: 1}, COST, 20, max_cost=200)
    assert made.refused == {
        "one sample of 33x64x64 costs 351.9, more than 200": 12,
        "17x16x16 lies in no bucket": 1,
    }
    report = "\n".join(made.report(steps=5))
    assert "left out: 12 samples, one sample of 33x64x64" in report and "9x64x64: 20 of 60 samples" in report
    images = BatchPlan(SHAPES, LARGEST, COST, 20, images_to_videos=(1, 0))
    assert images.refused == {"9x64x64: the ratio takes no videos": 20, "33x64x64: the ratio takes no videos": 12}


def test_what_cannot_be_planned_is_one_sentence():
    with pytest.raises(
        UserError, match=r"No sample can be trained on: 9x64x64 lies in no bucket \(2\); the buckets are 33x64x64"
    ):
        BatchPlan([SHORT] * 2, {LONG: 1}, COST, 4)
    with pytest.raises(UserError, match="needs images; there are none"):
        BatchPlan([SHORT] * 2, {SHORT: 1}, COST, 4, images_to_videos=(1, 4))
    with pytest.raises(UserError, match="global batch of 4 leaves some of the 8 processes without"):
        BatchPlan(SHAPES, LARGEST, COST, 4, world_size=8)


def test_a_cost_model_is_fitted_and_counted():
    true = CostModel(0.02, 3e-5, 2e-9)
    measured = [(n, b, true.batch(n, b)) for n in (256, 1024, 4352, 16384) for b in (1, 4)]
    found = CostModel.fit(measured)
    for n, b, seconds in measured:
        assert found.batch(n, b) == pytest.approx(seconds, rel=1e-6)
    with pytest.raises(UserError, match="three measured"):
        CostModel.fit(measured[:2])
    config = DiTConfig(hidden_size=96, num_heads=4, num_double_blocks=2, num_single_blocks=3, rope_axes_dim=(4, 10, 10))
    counted = CostModel.flops(config, 20)
    small, large = LatentSize(3, 8, 8), LatentSize(9, 8, 12)
    difference = dit_flops(config, large, 20) - dit_flops(config, small, 20)
    assert counted.sample(large.tokens()) - counted.sample(small.tokens()) == pytest.approx(difference, rel=1e-9)
