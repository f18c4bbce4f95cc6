"""The small networks without torch against their definition."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import save_safetensors
from openhunyuan.curate.measures.packaged import WEIGHTS
from openhunyuan.curate.models.small import NETWORKS
from openhunyuan.curate.models.small_forward import Forward, load_small, shapes
from openhunyuan.curate.models.weights import fill, read_tensors


@pytest.mark.parametrize("size", [(64, 64), (45, 80), (90, 161)])
@pytest.mark.parametrize("name", NETWORKS)
def test_numpy_says_what_torch_says(name: str, size: tuple[int, int]) -> None:
    path = WEIGHTS / f"{name}.safetensors"
    network = fill(NETWORKS[name](), read_tensors(path), path, name)
    x = torch.randn(2, NETWORKS[name]().inputs, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network(x).permute(0, 2, 3, 1).numpy()
    found = load_small(name, path)(x.permute(0, 2, 3, 1).numpy())
    assert found.dtype == np.float32
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_counts(name: str) -> None:
    rng = np.random.default_rng(1)
    tensors = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in shapes(name).items()}
    x = rng.normal(size=(1, 32, 32, NETWORKS[name]().inputs)).astype(np.float32)
    before = Forward(name, tensors)(x)
    for changed in tensors:
        assert not np.array_equal(Forward(name, {**tensors, changed: tensors[changed] * 1.5})(x), before), changed


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = WEIGHTS / "blur.safetensors"
    with pytest.raises(UserError, match=r"no small network watermark: it lacks 12 tensors"):
        load_small("watermark", path)
    odd = tmp_path / "odd.safetensors"
    save_safetensors(odd, {**{n: torch.zeros(s) for n, s in shapes("blur").items()}, "more": torch.zeros(1)})
    with pytest.raises(UserError, match="1 tensors too many, the first is more"):
        load_small("blur", odd)
    odd.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_small("blur", odd)


def test_the_default_plan_needs_no_torch() -> None:
    code = (
        "import sys; from openhunyuan.recipes.curate import PLAN\n"
        "for measure in PLAN.measures: measure.check()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
