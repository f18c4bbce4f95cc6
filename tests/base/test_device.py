import pytest
import torch

from openhunyuan.base.device import MAX_SEED, make_generator, noise, pick_device, pick_dtype
from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require


def test_noise_of_a_seed_does_not_depend_on_its_batch() -> None:
    alone, together = noise((4, 3), [7]), noise((4, 3), [5, 7, 9])
    assert alone.dtype == torch.float32
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    noise((2,), [1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_range(seed: int) -> None:
    with pytest.raises(UserError, match="seed"):
        make_generator(seed)


def test_largest_seed_works() -> None:
    assert noise((2,), [MAX_SEED]).shape == (1, 2)


def test_device_and_dtype_by_name() -> None:
    cpu = pick_device("cpu")
    assert pick_dtype(None, cpu) == torch.float32
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(UserError, match="Unknown device"):
        pick_device("gpu0")
    with pytest.raises(UserError, match="Unknown dtype"):
        pick_dtype("float8", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU"):
            pick_device("cuda")


def test_require_says_how_to_install() -> None:
    assert require("json").__name__ == "json"
    with pytest.raises(UserError, match=r"pip install 'openhunyuan\[curate\]'"):
        require("package_that_is_not_there", extra="curate")
