"""Previews: the fitted projection against a VAE that is linear, and against the embedded one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openhunyuan.base.video import read_metadata
from openhunyuan.infer.preview import Preview, fit_projection
from openhunyuan.infer.request import Request
from openhunyuan.models.load import load_vae
from openhunyuan.models.zoo import MODELS
from openhunyuan.tiny.world import heldout_scenes, render


class LinearVAE(nn.Module):
    """Encodes by averaging 8x8 pixels and mixing colours into 16 channels, the last four of them noise."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(12, 3, generator=generator))
        self.shift = torch.randn(12, generator=generator)
        self.generator = torch.Generator().manual_seed(1)

    def encode_latents(self, video: Tensor) -> Tensor:
        pooled = F.avg_pool3d(video, (1, 8, 8))
        colour = torch.einsum("kc,bcthw->bkthw", self.mix, pooled) + self.shift[:, None, None, None]
        noise = torch.randn(len(video), 4, *pooled.shape[2:], generator=self.generator)
        return torch.cat((colour, noise), dim=1)


def test_a_linear_vae_is_undone() -> None:
    vae = LinearVAE()
    projection = fit_projection(vae)  # type: ignore[arg-type]
    colours = torch.tensor([[-1.0, 0, 1], [0.5, -0.5, 0], [1, 1, 1], [0, 0, 0]])
    with torch.no_grad():
        latents = vae.encode_latents(colours.reshape(4, 3, 1, 1, 1).expand(4, 3, 1, 8, 8).contiguous())
    shown = np.stack([projection.frames(latent)[0, 0, 0] for latent in latents])
    expected = ((colours + 1) * 127.5).round().numpy()
    assert np.abs(shown.astype(int) - expected).max() <= 3
    again = fit_projection(LinearVAE())  # type: ignore[arg-type]
    torch.testing.assert_close(again.weight, projection.weight, atol=0, rtol=0)


def test_the_embedded_vae_shows_the_scene() -> None:
    """Colours of the projected latents follow those of the picture, shrunk eight times, on held-out scenes."""
    vae = load_vae(MODELS["tiny"].folder / "vae")
    projection = fit_projection(vae)
    for scene in heldout_scenes(3, seed=4):
        picture = torch.from_numpy(render(scene, num_frames=1)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad():
            shown = projection.frames(vae.encode_latents(picture)[0])[0].astype(float)
        small = (F.avg_pool2d(picture[0, :, 0], 8).permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.corrcoef(shown.ravel(), small.ravel())[0, 1] > 0.8
        assert np.abs(shown - small).mean() < 25


def test_a_preview_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    request = Request(prompt="a", num_frames=1)
    preview = Preview(LinearVAE(), tmp_path / "file" / "a.preview.png", request)  # type: ignore[arg-type]
    for step in range(2):
        preview(step + 1, 2, torch.zeros(1, 16, 1, 4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(4, 4, (256, 256)), (90, 160, (180, 320)), (300, 40, (300, 40))]
)
def test_size_and_contents(tmp_path: Path, height: int, width: int, expected: tuple[int, int]) -> None:
    from openhunyuan.base.video import read_video

    request = Request(prompt="a", num_frames=1, output_path=str(tmp_path / "a.png"))
    path = tmp_path / "a.preview.png"
    Preview(LinearVAE(), path, request)(4, 9, torch.zeros(1, 16, 1, height, width))  # type: ignore[arg-type]
    assert read_video(path)[0].shape == (1, *expected, 3)
    assert read_metadata(path) == {"preview_of": str(tmp_path / "a.png"), "step": 4, "steps": 9}
