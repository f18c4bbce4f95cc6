"""DOVER: numbers of the published implementation, its two views, its fused score."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.curate.models import dover
from openhunyuan.curate.models.dover import Dover, DoverMobileNetwork, DoverNetwork
from tests.curate.measures.test_measures import measured
from tests.curate.models.made_up import layout, made_up, pictures

SMALL = {"width": 12, "heads": (1, 2, 2, 4), "widths": (8, 12, 16, 24), "depths": (2, 2, 3, 2), "hidden": 8}
MOBILE = {"widths": (8, 12, 16, 24), "depths": (2, 2, 3, 2)}


@pytest.mark.parametrize(
    "network, names", [(DoverNetwork, "d670600f462c5f89"), (DoverMobileNetwork, "5a0bcdee1b5be4ee")]
)
def test_the_published_checkpoints_have_this_layout(network: type[DoverNetwork], names: str) -> None:
    with torch.device("meta"):
        assert layout(network().state_dict()) == names


def test_made_up_weights_give_what_the_published_implementation_gives() -> None:
    film = torch.from_numpy(pictures(1, 32, 112, 112, 3, seed=4)).float()
    film = ((film - torch.tensor(dover.MEAN)) / torch.tensor(dover.STD)).permute(0, 4, 1, 2, 3)
    network, mobile = DoverNetwork(**SMALL), DoverMobileNetwork(**MOBILE)
    for one in (network, mobile):
        one.load_state_dict(made_up(one))
        one.eval()
    with torch.inference_mode():
        assert float(network.technical(film)) == pytest.approx(-0.477099, abs=1e-4)
        assert float(network.aesthetic(film[:, :, :8])) == pytest.approx(1.239797, abs=1e-4)
        assert float(mobile.technical(film[:, :, :8])) == pytest.approx(-0.470463, abs=1e-4)


def test_windows_are_joined_again_and_masks_keep_strangers_apart() -> None:
    x = torch.randn(2, 4, 6, 6, 5)
    assert torch.equal(dover.joined(dover.windows(x, (2, 3, 3)), (2, 3, 3), x.shape), x)
    mask = dover.masked((4, 6, 6), (2, 3, 3), (1, 0, 0), torch.device("cpu"))
    assert mask.shape == (8, 18, 18)
    assert (mask[:4] == 0).all()  # the first windows in time hold neighbours only
    assert mask[4, 0, 9] == dover.MASKED and mask[4, 0, 5] == 0  # the last ones hold the end and the beginning
    gate = dover.apart((4, 6, 6), (2, 3, 3), (0, 0, 0), torch.device("cpu"))
    # Three windows of the source a side: tokens 0, 1 are in the first, 2 in the second.
    assert gate[0, 0, 1] == 0 and gate[0, 0, 2] == 1 and gate[0, 0, 8] == 2 and gate[0, 0, 9] == 0


def test_the_technical_view_keeps_the_sources_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (360, 640, 3)).astype(np.uint8)
    view = dover.fragments(frame, np.full((7, 7, 2), 0.999))
    assert view.shape == (224, 224, 3)
    # Cell (2, 3): 51 × 91 pixels, the window at most 18 down and 58 across.
    np.testing.assert_array_equal(view[64:96, 96:128], frame[102 + 18 : 152, 273 + 58 : 363])
    small = dover.fragments(frame[:100, :160], np.zeros((7, 7, 2)))
    assert small.shape == (224, 224, 3)
    # Enlarged to 224 rows, its cells are joined in order: a ramp stays a ramp.
    ramp = np.repeat(np.linspace(0, 200, 100)[:, None, None], 160, axis=1).repeat(3, axis=2).astype(np.uint8)
    column = dover.fragments(ramp, np.zeros((7, 7, 2)))[:, 5, 0].astype(int)
    assert (np.diff(column) >= 0).all() and column[0] == 0 and column[-1] == 200


@pytest.mark.parametrize("count", [1, 20, 33, 100, 400])
def test_frames_of_both_views_lie_in_the_clip(count: int) -> None:
    technical, aesthetic = dover.technical_frames(count), dover.aesthetic_frames(count)
    assert len(technical) == 96 and len(aesthetic) == 32
    assert min(technical + aesthetic) >= 0 and max(technical + aesthetic) < count
    assert aesthetic == sorted(aesthetic) and len(set(aesthetic)) == min(count, 32)
    if count == 400:  # 133 a part, 64 of them used from the middle on
        assert technical[:3] == [34, 36, 38] and technical[32] == 133 + 34


def test_a_clip_is_scored_and_its_scores_can_be_had_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "DOVER-Mobile.pth"
    small = DoverMobileNetwork(**MOBILE)
    torch.save(made_up(small), path)
    monkeypatch.setattr(dover, "DoverMobileNetwork", lambda: DoverMobileNetwork(**MOBILE))
    monkeypatch.setattr(dover, "LENGTH", 4)
    film = pictures(14, 60, 80, 3)
    rows = [measured(Dover(path=str(path), device="cpu", batch=batch), film) for batch in (1, 3)]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)
    assert rows[0]["technical"] != pytest.approx(measured(Dover(path=str(path)), film[::-1])["technical"], abs=1e-6)
    assert rows[0]["overall"] == pytest.approx(dover.overall(rows[0]["technical"], rows[0]["aesthetic"]))
    # The authors' constants are where both parts are at their means.
    assert dover.overall(0.1107, -0.08285) == pytest.approx(0.5)
    assert dover.overall(0.1107 + 0.07355, -0.08285) == pytest.approx(1 / (1 + np.exp(-0.6104)))
