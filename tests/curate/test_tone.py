"""Tone mapping against numbers that the standards print, and against pictures."""

from pathlib import Path

import numpy as np
import pytest

from openhunyuan.curate.footage import Footage
from openhunyuan.curate.split import split_video
from openhunyuan.curate.tone import PEAK, WHITE, compressed, hlg_to_scene, light_to_pq, pq_to_light, to_sdr
from tests.curate.films import encode_hdr


def grey(signal: float) -> np.ndarray:
    return np.full((1, 1, 3), round(65535 * signal), np.uint16)


def test_signals_stand_for_the_light_that_the_standards_say() -> None:
    # BT.2408, table 1: HDR reference white, 203 cd/m², is 58 % of PQ and 75 % of HLG; grey cards likewise.
    assert light_to_pq(np.array([100.0, 203.0, 1000.0, 10000.0])) == pytest.approx([0.508, 0.581, 0.752, 1.0], abs=5e-4)
    assert pq_to_light(np.array([0.0, 1.0])) == pytest.approx([0.0, 10000.0])
    assert hlg_to_scene(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 1 / 12, 1.0], abs=1e-6)
    assert 1000 * hlg_to_scene(np.array(0.75)) ** 1.2 == pytest.approx(203, abs=0.5)
    assert 1000 * hlg_to_scene(np.array(0.38)) ** 1.2 == pytest.approx(26, abs=1), "the grey card"


def test_the_curve_is_straight_below_its_knee_and_ends_at_white() -> None:
    light = np.linspace(0, PEAK, 2001)
    out = compressed(light)
    assert (np.diff(out) > 0).all()
    assert out[light <= 80] == pytest.approx(light[light <= 80], rel=1e-6)
    assert out[-1] == pytest.approx(WHITE)
    assert (out <= light + 1e-9).all()


def test_greys_stay_grey_and_both_ways_of_saying_a_light_agree() -> None:
    for light in (1.0, 26.0, 100.0, 203.0, 600.0, 1000.0):
        pq = to_sdr(grey(float(light_to_pq(np.array(light)))), "pq")[0, 0].astype(int)
        assert np.ptp(pq) <= 1
        signals = np.linspace(0, 1, 4001)
        hlg = signals[np.abs(1000 * hlg_to_scene(signals) ** 1.2 - light).argmin()]
        assert np.abs(to_sdr(grey(float(hlg)), "hlg")[0, 0].astype(int) - pq).max() <= 2
    assert to_sdr(grey(0.0), "pq").max() == 0
    assert to_sdr(grey(1.0), "pq").min() == 255
    assert np.abs(to_sdr(grey(0.5), "sdr").astype(int) - 128).max() <= 1


def test_colours_of_the_narrow_gamut_come_back() -> None:
    """BT.709 red at 100 cd/m², said in BT.2020, is red and nothing else."""
    in_2020 = np.array([0.6274, 0.0691, 0.0164])  # BT.2087: the first column of the matrix the other way
    signal = np.round(65535 * light_to_pq(80 * in_2020)).astype(np.uint16)[None, None]
    red, green, blue = to_sdr(signal, "pq")[0, 0].astype(int)
    assert red == pytest.approx(255 * (80 / WHITE) ** (1 / 2.4), abs=1.5)
    assert max(green, blue) < 25
    straight = to_sdr(np.array([[[65535, 0, 0]]], np.uint16), "sdr", wide=False)[0, 0]
    assert straight.tolist() == [255, 0, 0]


@pytest.mark.parametrize("transfer, code", [("pq", 16), ("hlg", 18)])
def test_a_film_of_hdr_is_read_as_sdr(tmp_path: Path, transfer: str, code: int) -> None:
    lights = np.array([5.0, 26.0, 100.0, 203.0, 600.0])
    path = encode_hdr(tmp_path / "a.mp4", lights, transfer, code)
    with Footage(path) as footage:
        assert (footage.media.transfer, footage.media.wide, footage.media.bits) == (transfer, True, 10)
        pictures = np.stack([frame.rgb() for frame in footage.frames()])
    wanted = 255 * (compressed(lights) / WHITE) ** (1 / 2.4)
    assert pictures.dtype == np.uint8
    assert pictures.mean(axis=(1, 2, 3)) == pytest.approx(wanted, abs=2.5)
    assert "hdr" in split_video(path)[0].tags
