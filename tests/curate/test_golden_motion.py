"""Motion scores that others published, on their clips, where these lie beside the checkout."""

from pathlib import Path

import pytest

from benchmarks.golden_motion import GOLDEN, Golden, find, scores_of

CLIPS = Path(__file__).parents[3] / "shared" / "clips"


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.names[0])
def test_published_motion_scores(golden: Golden) -> None:
    path = find(golden, [CLIPS])
    if path is None:
        pytest.skip(f"{golden.names[0]} is not in {CLIPS}")
    found = scores_of(path, golden.method)
    for column, published in golden.scores.items():
        assert found[column] == pytest.approx(published, abs=golden.within)
