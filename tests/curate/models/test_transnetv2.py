"""TransNetV2: numbers of the published implementation, windows, and how its boundaries join the default ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.curate.models.transnetv2 import TransNetV2, TransNetV2Split, _Windows, combined, runs
from openhunyuan.curate.split import Boundaries, Split, find_shots
from tests.curate.films import save, shot
from tests.curate.models.made_up import layout, made_up, pictures


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return made_up(TransNetV2())


@pytest.fixture(scope="module")
def network(state: dict[str, torch.Tensor]) -> TransNetV2:
    network = TransNetV2()
    network.load_state_dict(state)
    return network.eval()


def test_the_published_checkpoint_has_this_layout(state: dict[str, torch.Tensor]) -> None:
    assert len(state) == 90
    assert layout(state) == "0a021fd5227169ab"
    assert sum(p.numel() for p in TransNetV2().parameters()) == 7_616_258


def test_made_up_weights_give_what_the_published_implementation_gives(network: TransNetV2) -> None:
    film = np.concatenate([pictures(1, 20, 27, 48, 3, seed=1), pictures(1, 20, 27, 48, 3, seed=2)], axis=1)
    with torch.inference_mode():
        one, many = network(torch.from_numpy(film))
    assert one.shape == many.shape == (1, 40)
    at = np.linspace(0, 39, 6).astype(int)
    np.testing.assert_allclose(
        one[0, at].numpy(), [1.507895, 2.347377, 3.371499, 4.26124, 2.381793, 1.902205], atol=2e-4
    )
    np.testing.assert_allclose(
        many[0, at].numpy(), [-1.037737, -2.274937, -2.89185, -3.809879, -2.305754, -1.335579], atol=2e-4
    )


class Mean(torch.nn.Module):
    """Stands in for the network: the frame's mean level as its logit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += list(frames)
        x = frames.float().mean(dim=(2, 3, 4)) * self.weight / 255
        return x, x


@pytest.mark.parametrize("count", [1, 49, 50, 51, 130])
def test_every_frame_is_believed_once_from_the_middle_of_a_window(count: int) -> None:
    levels = np.random.default_rng(count).integers(0, 255, count).astype(np.uint8)
    network = Mean()
    windows = _Windows(network, batch=2, threshold=0.5)  # type: ignore[arg-type]
    for level in levels:
        windows.add(np.full((30, 40, 3), level, np.uint8))
    wanted = 1 / (1 + np.exp(levels / -255.0))
    np.testing.assert_allclose(windows.chances(), wanted, atol=1e-6)
    assert all(len(frames) == 100 for frames in network.seen)
    # 25 frames before the first and behind the last are copies of them.
    padded = np.concatenate([np.full(25, levels[0]), levels, np.full(75, levels[-1])])
    for number, frames in enumerate(network.seen):
        assert frames[:, 0, 0, 0].tolist() == padded[50 * number : 50 * number + 100].tolist()


def test_boundaries_of_both_are_boundaries() -> None:
    known = Boundaries(200, cuts=(50,), spans=((100, 110),))
    assert combined(known, []) == known
    assert combined(known, [(49, 50), (48, 51)]) == known  # the same cut, sharp or smeared
    assert combined(known, [(99, 109)]) == known  # inside a gradual transition that is known
    assert combined(known, [(29, 30)]).cuts == (30, 50)  # frame 29 ends its shot
    assert combined(known, [(150, 161)]).spans == ((100, 110), (151, 161))
    assert combined(known, [(104, 121)]).spans == ((100, 121),)
    assert combined(known, [(199, 200)]) == known
    assert runs(np.array([1, 1, 0, 0, 1, 0, 1], bool)) == [(0, 2), (4, 5), (6, 7)]


def test_a_split_with_the_network_cuts_where_only_the_network_sees_it(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    film, weights = save(tmp_path / "a.mp4", shot(1, 30), shot(2, 26)), tmp_path / "transnetv2.pth"
    torch.save(state, weights)
    config = TransNetV2Split(path=str(weights), device="cpu", batch=1, min_seconds=0.1)
    assert [(s.start_frame, s.end_frame) for s in find_shots(film, Split(min_seconds=0.1)).spans] == [(0, 30), (30, 56)]
    seen: list[np.ndarray] = []

    def says_frame_11(self: _Windows) -> np.ndarray:
        seen.append(chances(self))
        return (np.arange(56) == 11).astype(np.float32)

    chances = _Windows.chances
    monkeypatch.setattr(_Windows, "chances", says_frame_11)
    spans = [(s.start_frame, s.end_frame) for s in find_shots(film, config).spans]
    assert spans == [(0, 12), (12, 30), (30, 56)]
    assert seen[0].shape == (56,) and (seen[0] > 0).all() and (seen[0] < 1).all()
    other = {**state, "fc1.bias": state["fc1.bias"] + 1}
    torch.save(other, weights)
    assert TransNetV2Split(path=str(weights)).key != config.key != Split().key
    assert config.describe()["parameters"]["detectors"] == "adaptive + gradual + transnetv2"


def test_files_that_are_no_checkpoint_are_refused_in_one_sentence(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.unlink, (tmp_path / "victim",))  # type: ignore[return-value]

    path = tmp_path / "w.pth"
    (tmp_path / "victim").write_text("here")
    for content, said in (
        ({"fc1.weight": Runs()}, "holds more than tensors"),
        ({k: v for k, v in state.items() if k != "fc1.bias"}, "lacks 1 tensors, the first is fc1.bias"),
        ({**state, "extra": torch.zeros(1)}, "1 tensors too many, the first is extra"),
        ({**state, "fc1.bias": torch.zeros(7)}, r"fc1.bias has shape \[7\], but it must be \[1024\]"),
        ({"epoch": 3}, "holds no tensors by name"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=said):
            TransNetV2Split(path=str(path)).check()
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a PyTorch file"):
        TransNetV2Split(path=str(path)).check()
    torch.save({"fc1.weight": Runs()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="cannot be read as a file of tensors alone"):
        TransNetV2Split(path=str(path)).check()
    assert (tmp_path / "victim").exists()
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6
    TransNetV2Split(path=str(path)).check()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    TransNetV2Split(path=str(path)).check()
