import pytest
import torch

from openhunyuan.base.sizes import LatentSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.flops import dit_flops
from openhunyuan.train.loop import StepContext, step_generator
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask
from openhunyuan.train.window import Meter, Window, Work

CPU = torch.device("cpu")


def measured(meter: Meter, work: Work, weight: float, seconds: float) -> None:
    """One micro-batch that took so long."""
    with meter.part(work, weight):
        pass
    *_, begin, _ = meter.parts[-1]
    meter.parts[-1] = (work, weight, begin, begin + seconds)


def test_utilization_is_operations_over_what_is_possible():
    window, meter = Window(), Meter(CPU, recompute=True)
    measured(meter, Work("1x16x16", trained=100, frozen=20), 0.5, 2.0)
    measured(meter, Work("1x16x16", trained=100, frozen=20), 0.0, 2.0)  # repeated: it weighs nothing
    measured(meter, Work("9x16x16", trained=1000), 0.5, 4.0)
    window.count(meter.take())
    assert meter.take() == {}
    window.add({"loss": 1.0, "seconds_per_step": 10.0})
    window.add({"loss": 2.0, "seconds_per_step": 6.0, "now_and_then": 5.0})
    found = window.record(peak=1000.0)
    assert found["loss"] == 1.5 and found["now_and_then"] == 5.0
    assert found["mfu/1x16x16"] == pytest.approx(320 / 4000) and found["hfu/1x16x16"] == pytest.approx(840 / 4000)
    assert found["mfu/9x16x16"] == pytest.approx(3000 / 4000) and found["hfu/9x16x16"] == pytest.approx(4000 / 4000)
    assert found["mfu"] == pytest.approx(3320 / 16000) and found["hfu"] == pytest.approx(4840 / 16000)
    assert window.record(peak=1000.0) == {}


def test_losses_by_level_are_means_over_samples_and_survive_a_checkpoint():
    window, meter = Window(), Meter(CPU)
    small = Work("1x16x16", 1)
    meter.levels(small, torch.tensor([[0.05, 1.0], [0.19, 2.0], [1.0, 7.0]]))
    window.count(meter.take())
    again = Window()
    again.load_state_dict(window.state_dict())
    meter.levels(small, torch.tensor([[0.0, 6.0]]))
    meter.levels(Work("9x16x16", 1), torch.tensor([[0.5, 4.0]]))
    again.count(meter.take())
    assert again.record(None) == {
        "loss_by_level/1x16x16/0.0-0.2": pytest.approx(3.0),
        "loss_by_level/1x16x16/0.8-1.0": pytest.approx(7.0),
        "loss_by_level/9x16x16/0.4-0.6": pytest.approx(4.0),
    }


@pytest.mark.parametrize("image_share", [0.0, 1.0])
def test_flow_says_what_its_batches_cost_and_every_samples_loss(image_share):
    config = DiTConfig(
        in_channels=2, out_channels=2, hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1,
        num_refiner_blocks=1, rope_axes_dim=(4, 6, 6), text_dim=4, pooled_dim=4, guidance_embed=False,
    )  # fmt: skip
    torch.manual_seed(0)
    dit = DiT(config)
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    task = FlowTask(FlowConfig(image_share=image_share), dit, EmptyText(torch.zeros(1, 4), torch.zeros(4)), {})
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = {
        "latents": torch.randn(2, 2, 3, 2, 4), "text_states": torch.randn(2, 3, 4), "text_mask": mask,
        "pooled": torch.randn(2, 4),
    }  # fmt: skip
    work = task.work("model", batch)
    latent = LatentSize(3, 2, 4)
    assert work == Work("9x16x32", dit_flops(config, latent, 3) + dit_flops(config, latent, 1))
    loss, said = task.loss("model", batch, StepContext(0, 1, None, step_generator(0, 0)))
    by_level = said["by_level"]
    assert by_level.shape == (2, 2) and not by_level.requires_grad and bool((by_level[:, 0] < 1).all())
    assert by_level[:, 1].mean() == pytest.approx(loss.item(), rel=1e-5) and by_level[0, 1] != by_level[1, 1]
