from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from openhunyuan.base.errors import UserError
from openhunyuan.models.lpips import DEPTHS, Lpips
from openhunyuan.train.perceptual import ClipFeatures, perceptual_distance, perceptual_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = size | {"image_size": 32, "patch_size": 8}
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(path)
    return path


def test_features_are_the_towers_layers_and_pass_gradient_to_the_picture(folder: Path):
    features = ClipFeatures(folder)
    x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    assert [f.shape for f in features(x)] == [(2, 16, 16)] * 3
    assert perceptual_distance(features, x, x) == pytest.approx(0, abs=1e-5)
    perceptual_distance(features, x, y).backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in features.parameters())


def test_other_sizes_are_resized_to_the_towers(folder: Path):
    assert ClipFeatures(folder)(torch.rand(1, 3, 64, 48))[0].shape == (1, 16, 16)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="tiny-text"):
        ClipFeatures(tmp_path)


def test_networks_go_by_name_and_none_replaces_another(folder: Path, tmp_path: Path):
    assert isinstance(perceptual_network(f"clip:{folder}"), ClipFeatures)
    with pytest.raises(UserError, match="does not exist"):
        perceptual_network(f"lpips:{tmp_path / 'vgg16.pth'},{tmp_path / 'vgg.pth'}")
    for name in ("lpips", "lpips:one.pth", "vgg:x", "clip:"):
        with pytest.raises(UserError, match="use clip:FOLDER or lpips:"):
            perceptual_network(name)


def test_lpips_is_taken_as_it_is():
    torch.manual_seed(0)
    weights, before = {}, 3
    for depth in DEPTHS:
        for place, (_, after) in depth.items():
            weights[place] = torch.randn(after, before, 3, 3) * (2 / (9 * before)) ** 0.5, torch.zeros(after)
            before = after
    lpips = Lpips(weights, tuple(torch.rand(list(depth.values())[-1][1]) for depth in DEPTHS))
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    assert perceptual_distance(lpips, x, y).item() == pytest.approx(lpips(x, y).mean().item())
    perceptual_distance(lpips, x, y).backward()
    assert y.grad is not None and y.grad.abs().sum() > 0


def layers(x):
    return [x, torch.nn.functional.avg_pool2d(x, 2)]


def test_perceptual_distance_is_zero_for_equal_pictures_and_passes_gradient_to_the_second():
    x = torch.rand(2, 3, 16, 16)
    y = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert perceptual_distance(layers, x, x) == pytest.approx(0, abs=1e-6)
    perceptual_distance(layers, x, y).backward()
    assert y.grad.abs().sum() > 0
