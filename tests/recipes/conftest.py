"""What the tests of stages share."""

from collections.abc import Iterator

import pytest
import torch

from openhunyuan.recipes.scales import SIZES
from tests.recipes.micro_scale import MICRO


@pytest.fixture(scope="module")
def micro_scale() -> Iterator[None]:
    """Scale tiny has micro networks and sizes while a test of this module runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", MICRO)
        yield
    torch.set_num_threads(threads)
