"""The released 13B at its full size: files with every key and shape, whose data are holes, so that they cost no disk.

What is measured is memory: opening maps, converting holds one tensor at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from openhunyuan.base.tensorfile import write_pickle
from openhunyuan.cli.main import main
from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.dit_write import plan_dit
from openhunyuan.convert.lazy import from_tensor
from openhunyuan.convert.plan import TensorFile, total_bytes
from openhunyuan.convert.vae import plan_vae, read_vae
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from tests.convert.conftest import dit_state
from tests.convert.test_names import shapes
from tools.tiny_files import OFFICIAL_VAE

PARAMETERS = 12_821_012_544


def holes(path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> Path:
    """An official pickle with these names and shapes, and nothing written where the data would be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FakeTensorMode():
        shells = {name: torch.empty(value.shape, dtype=dtype) for name, value in state.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"module": shells}, path)
    if path.stat().st_blocks * 512 > 100_000_000:
        path.unlink()
        pytest.skip("this file system has no sparse files")
    return path


def meta(model: type[torch.nn.Module], config: object) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return model(config).state_dict()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ckpts") / "hunyuan-video-t2v-720p"
    return holes(folder / "transformers" / "mp_rank_00_model_states.pt", meta(DiT, DiTConfig()))


def test_official_transformer_to_every_format_by_name_and_shape(released: Path, tmp_path: Path) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    assert released.stat().st_size == pytest.approx(2 * PARAMETERS, rel=1e-4)  # the 25.64 GB of release fact A.2
    weights = read_dit(released)
    assert weights.config == DiTConfig()
    assert len(weights.state) == 856

    files = plan_dit(weights, tmp_path, "diffusers")
    shards = [file for file in files if isinstance(file, TensorFile)]
    assert len(shards) == 6
    assert max(file.nbytes for file in shards) <= 5_000_000_000
    tensors = {name: value for file in shards for name, value in file.tensors.items()}
    with torch.device("meta"):
        published = HunyuanVideoTransformer3DModel()
    assert len(tensors) == 1264
    assert shapes(tensors) == shapes(published.state_dict())
    assert total_bytes(files) == 2 * PARAMETERS

    files = plan_dit(weights, tmp_path, "official-fp8")
    eight, scales = (file for file in files if isinstance(file, TensorFile))
    assert len(scales.tensors) == 320
    assert {value.shape for value in scales.tensors.values()} == {(1,)}
    assert eight.nbytes == pytest.approx(13.18e9, rel=1e-3)  # release fact A.3
    assert [len(plan.tensors) for plan in plan_dit(weights, tmp_path, "comfyui") if isinstance(plan, TensorFile)] == [
        856
    ]


@pytest.mark.parametrize("lost", ["double_blocks.19.img_mod.linear.bias", "single_blocks.39.linear2.weight"])
def test_one_missing_key_of_856_is_named(tmp_path: Path, lost: str) -> None:
    state = meta(DiT, DiTConfig())
    del state[lost]
    path = holes(tmp_path / "states.pt", state)
    with pytest.raises(ValueError, match=f"lack keys: {lost}"):
        read_dit(path)


def test_official_vae_by_name_and_shape(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    state = {f"vae.{name}": value for name, value in meta(CausalVAE, VAEConfig()).items()}
    holes(tmp_path / "vae" / "pytorch_model.pt", state, torch.float16)
    config = {**OFFICIAL_VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    weights = read_vae(tmp_path / "vae")
    assert weights.config == VAEConfig()
    written = next(file for file in plan_vae(weights, tmp_path, "diffusers") if isinstance(file, TensorFile)).tensors
    with torch.device("meta"):
        published = AutoencoderKLHunyuanVideo()
    assert len(written) == 248
    assert shapes(written) == shapes(published.state_dict())


def test_the_command_checks_a_whole_official_layout(
    released: Path, tmp_path: Path, micro_text_folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """``openhunyuan convert --dry-run`` on 26 GB of names and shapes; text encoders are small."""
    inner = tmp_path / "ckpts" / "hunyuan-video-t2v-720p"
    (inner / "transformers").mkdir(parents=True)
    (inner / "transformers" / released.name).symlink_to(released)
    vae = meta(CausalVAE, VAEConfig())
    holes(inner / "vae" / "pytorch_model.pt", vae, torch.float16)
    config = {**OFFICIAL_VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    (inner / "vae" / "config.json").write_text(json.dumps(config))
    for folder in micro_text_folders:
        shutil.copytree(folder, tmp_path / "ckpts" / folder.name)

    def listed(to: str) -> dict[str, int]:
        """Part -> tensors, by what the command says."""
        target = tmp_path / to
        assert main(["convert", str(tmp_path / "ckpts"), str(target), "--to", to, "--dry-run"]) == 0
        assert not target.exists()
        counts: dict[str, int] = {}
        for line in capsys.readouterr().out.splitlines():
            if found := re.fullmatch(r"(.+)  (\d+) tensors  [\d.]+ GB", line):
                part = Path(found[1]).relative_to(target).parent.name
                counts[part] = counts.get(part, 0) + int(found[2])
        return counts

    assert listed("diffusers") == {"transformer": 1264, "vae": 248}
    assert listed("official") == {"transformers": 856, "vae": 248}
    assert listed("official-fp8") == {"transformers": 856 + 320, "vae": 248}
    assert listed("openhunyuan") == {"dit": 856, "vae": 248}

    vae["quant_conv.bias"] = vae["quant_conv.bias"][:-1]
    holes(inner / "vae" / "pytorch_model.pt", vae, torch.float16)
    assert main(["convert", str(tmp_path / "ckpts"), str(tmp_path / "x"), "--dry-run"]) == 2
    assert "quant_conv.bias has shape [31]" in capsys.readouterr().err


MEASURE = """
import json, sys
from pathlib import Path
import torch
from openhunyuan.convert.load import open_dit
from openhunyuan.convert.job import plan

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def grown(job, source, target):
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins again.
    if job == "open":
        model = open_dit(Path(source), dtype=torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == 12_821_012_544
        assert float(model.single_blocks[39].linear1.weight[5, 7]) == 0
    else:
        plan(source, target, job).run()
    return memory("VmHWM") - start

small, jobs = sys.argv[1], json.loads(sys.argv[2])
# What is imported on the way is no memory of the conversion: small ones first.
for job in ("official-fp8", *(job for job, *_ in jobs if job != "open")):
    plan(small, f"{small}-{job}", job).run()
open_dit(Path(small))
start = memory("VmRSS")
print(json.dumps([grown(*job) for job in jobs]))
"""


def test_memory_of_opening_and_converting(released: Path, tmp_path: Path) -> None:
    """In a process of its own: mapped as they are, 25.6 GB of weights take the memory of their headers; a conversion
    stays below 1.2 of the largest shard, from the official file and from shards of diffusers.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak is measured through /proc")
    config = DiTConfig(
        hidden_size=512,
        num_heads=4,
        num_double_blocks=2,
        num_single_blocks=3,
        num_refiner_blocks=1,
        rope_axes_dim=(16, 56, 56),
        text_dim=64,
        pooled_dim=64,
    )
    zeros = {
        name: from_tensor(torch.zeros(value.shape, dtype=torch.bfloat16)) for name, value in meta(DiT, config).items()
    }
    official, shards = tmp_path / "large_model_states.pt", tmp_path / "shards"
    write_pickle(official, {"module": zeros})
    for file in plan_dit(read_dit(official), shards, "diffusers", max_shard=30_000_000):
        file.write()
    largest = max(path.stat().st_size for path in shards.glob("*.safetensors"))
    assert official.stat().st_size > 70_000_000
    assert 10_000_000 < largest < 31_000_000
    # job, source, and the size that the growth is compared with
    jobs = [
        ("open", released, 0.02 * released.stat().st_size),
        ("diffusers", official, 1.2 * official.stat().st_size),
        ("comfyui", official, 1.2 * official.stat().st_size),
        ("official", shards, 1.2 * largest),
        ("openhunyuan", shards, 1.2 * largest),
        ("openhunyuan-fp8", official, 1.2 * official.stat().st_size),
    ]
    small = tmp_path / "small_model_states.pt"
    torch.save({"module": dit_state()}, small)
    listed = json.dumps([(job, str(source), str(tmp_path / "out" / job)) for job, source, _ in jobs])
    result = subprocess.run([sys.executable, "-c", MEASURE, str(small), listed], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for (job, _, bound), grown in zip(jobs, json.loads(result.stdout.splitlines()[-1]), strict=True):
        print(f"{job}: {grown / 1e6:.1f} MB, bound {bound / 1e6:.1f} MB")
        assert grown < bound, job
