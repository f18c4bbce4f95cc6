"""RAFT: numbers of the published implementation, and speeds that depend on neither size nor sign."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from openhunyuan.base.errors import UserError
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.models.raft import Raft, RaftNetwork, correlation_pyramid, fitted, looked_up, upsampled
from tests.curate.measures.test_measures import measured, moving
from tests.curate.models.made_up import layout, made_up, pictures


@pytest.mark.parametrize(
    "small, parameters, names, wanted",
    [
        (False, 5_257_536, "64b87cdb3427bfbf", [11.171048, 19.515354, 7.306581, -0.32359, -0.027052, 3.288254]),
        (True, 990_162, "266b5a8936080493", [17.000536, -3.148787, 1.978511, 33.152645, 50.412258, 20.400131]),
    ],
)
def test_made_up_weights_give_what_the_published_implementation_gives(
    small: bool, parameters: int, names: str, wanted: list[float]
) -> None:
    network = RaftNetwork(small)
    assert sum(p.numel() for p in network.parameters()) == parameters  # as torchvision states it
    state = made_up(network)
    assert layout(state) == names
    network.load_state_dict(state)
    pair = torch.from_numpy(pictures(2, 128, 136, 3, seed=3)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        flow = network.eval()(pair[:1], pair[1:], 3)
    assert flow.shape == (1, 2, 128, 136)
    at = np.linspace(0, flow.numel() - 1, 6).astype(int)
    np.testing.assert_allclose(flow.flatten()[at].numpy(), wanted, rtol=2e-3, atol=2e-3)


def test_correlations_are_looked_up_where_the_flow_points() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(1, 5, 16, 24), torch.randn(1, 5, 16, 24)
    pyramid = correlation_pyramid(one, other)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    places = torch.zeros(1, 2, 16, 24)
    places[:, 0], places[:, 1] = 10.0, 6.0
    found = looked_up(pyramid, places, radius=2).view(4, 5, 5, 16, 24)
    # Level 0, window (x + 1, y - 2) of the cell at row 3, column 7.
    wanted = (one[0, :, 3, 7] * other[0, :, 4, 11]).sum() / 5**0.5
    assert float(found[0, 3, 0, 3, 7]) == pytest.approx(float(wanted), abs=1e-5)
    halved = functional.avg_pool2d(other, 2)
    wanted = (one[0, :, 3, 7] * halved[0, :, 3, 5]).sum() / 5**0.5
    assert float(found[1, 2, 2, 3, 7]) == pytest.approx(float(wanted), abs=1e-5)


def test_a_mask_that_points_at_one_neighbour_copies_its_flow() -> None:
    flow = torch.randn(1, 2, 4, 5)
    mask = torch.full((1, 9, 64, 4, 5), -50.0)
    mask[:, 5] = 50.0  # the neighbour to the right
    up = upsampled(flow, mask.view(1, 576, 4, 5))
    torch.testing.assert_close(up[0, :, 8:16, 16:24], 8 * flow[0, :, 1, 3, None, None].expand(2, 8, 8))


class Known(torch.nn.Module):
    """Stands in for the network: everything moves so many pixels a pair."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x, self.sizes = x, []

    def forward(self, first: torch.Tensor, second: torch.Tensor, updates: int) -> torch.Tensor:
        assert first.shape == second.shape and float(first.min()) >= -1 and float(first.max()) <= 1
        self.sizes.append(len(first))
        flow = torch.zeros(len(first), 2, *first.shape[-2:])
        flow[:, 0] = self.x
        return flow


def test_speeds_are_in_per_cent_of_the_diagonal_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(made_up(RaftNetwork(small=True)), tmp_path / "raft.pth")
    stage = Raft(path=str(tmp_path / "raft.pth"), side=256, batch=4, device="cpu")
    known = Known(4.0)
    monkeypatch.setattr("openhunyuan.curate.models.weights._loaded", lambda stage: known)
    film = moving(1, 41)  # 256 × 144, eleven samples at 24 frames a second
    row = measured(stage, film)
    assert known.sizes == [4, 4, 2]
    assert row["camera_speed"] == pytest.approx(100 * 4.0 / np.hypot(256, 144) * 6, rel=1e-3)
    assert row["subject_speed"] < 0.01 and set(row) == set(measured(Motion(), film))
    assert measured(stage, film[:1])["speed"] is None


@pytest.mark.parametrize(
    "size, wanted",
    [((144, 256), (288, 512)), ((1080, 1920), (288, 512)), ((640, 90), (512, 128)), ((20, 20), (512, 512))],
)
def test_pictures_fit_the_network(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert fitted(np.zeros((*size, 3), np.uint8), 512).shape == (*wanted, 3)


def test_a_real_run_of_the_small_network_and_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "raft.pth"
    state = made_up(RaftNetwork(small=True))
    torch.save(state, path)
    row = measured(Raft(path=str(path), side=128, updates=2, device="cpu"), moving(1, 9)[:, ::2, ::2])
    assert row["speed"] > 0 and np.isfinite(list(row.values())).all()
    torch.save({**state, "mask_predictor.conv.bias": torch.zeros(576)}, path)
    with pytest.raises(UserError, match="is no RAFT checkpoint of torchvision: it lacks"):
        Raft(path=str(path)).check()
