import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig


def shape(batch_size: int, num_frames: int = 1, share: int = 1) -> BatchShape:
    return BatchShape(batch_size=batch_size, num_frames=num_frames, height=32, width=32, share=share)


def test_every_round_holds_each_shape_its_share_spread_evenly():
    stage = Stage(name="mixed", steps=10, shapes=(shape(1, 17, share=4), shape(8)))
    sizes = [stage.shape_at(i).batch_size for i in range(10)]
    assert sizes[:5] == sizes[5:]
    assert sorted(sizes[:5]) == [1, 1, 1, 1, 8]
    assert sizes[0] != 8 and sizes[4] != 8  # not lumped at an end


def test_stage_at_walks_through_the_stages():
    config = TrainConfig(
        name="r", stages=(Stage(name="a", steps=3, shapes=(shape(1),)), Stage(name="b", steps=2, shapes=(shape(1),)))
    )
    assert [config.stage_at(i)[0].name for i in range(config.total_steps)] == ["a", "a", "a", "b", "b"]
    assert config.stage_at(4)[1] == 1
    with pytest.raises(IndexError):
        config.stage_at(5)


@pytest.mark.parametrize("num_frames", [2, 16, 18])
def test_frames_that_no_latent_holds_are_refused(num_frames: int):
    with pytest.raises(UserError, match="4n\\+1"):
        shape(1, num_frames)


def test_unknown_keys_are_errors_that_name_the_nearest():
    with pytest.raises(UserError, match=r"Unknown field batchsize; did you mean batch_size\?"):
        BatchShape(batchsize=1, batch_size=1, num_frames=1, height=16, width=16)
    with pytest.raises(UserError, match=r"weight_decai; did you mean weight_decay\?"):
        OptimizerConfig(weight_decai=0.1)


def test_unknown_keys_inside_a_stored_run_are_errors_too():
    stored = TrainConfig(name="r", stages=(Stage(name="a", steps=3, shapes=(shape(1),)),)).model_dump(mode="json")
    assert TrainConfig(**stored).total_steps == 3
    stored["optimizer"]["muonlr"] = 0.1
    with pytest.raises(UserError, match=r"muonlr; did you mean muon_lr\?"):
        TrainConfig(**stored)
