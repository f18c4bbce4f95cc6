"""Wide and bright pictures as ordinary ones: PQ, HLG and BT.2020 to BT.709 in eight bits, by published formulas.

    signal → light          PQ: SMPTE ST 2084; HLG: BT.2100, on a display of 1000 cd/m², system gamma 1.2;
                            SDR: BT.1886 with black at zero, its white at `WHITE`
    light → light at most `WHITE`    BT.2390 EETF: straight up to a knee, then a Hermite curve that meets the white with
                            no slope. Its argument is the largest of a pixel's three channels and all three are scaled
                            alike, which keeps their ratios; a source brighter than `PEAK` is cut there
    BT.2020 → BT.709        matrix of BT.2087 on linear light; what lies outside is clipped
    light → signal          BT.1886 backwards

FFmpeg's own way needs the filters zscale or libplacebo, which PyAV's builds do not have.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WHITE, PEAK = 203.0, 1000.0
"""cd/m²: HDR reference white (BT.2408), which becomes the SDR white; and the brightest light that is told apart."""

_HLG_GAMMA, _SDR_GAMMA = 1.2, 2.4
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # BT.2087


def to_sdr(signal: np.ndarray, transfer: str, wide: bool = True) -> np.ndarray:
    """uint16 [H, W, 3], full range, non-linear → uint8 [H, W, 3], BT.709 primaries.

    transfer: "pq", "hlg" or "sdr". wide: whether the primaries are those of BT.2020.
    """
    light = _light_of(transfer)[signal]
    if transfer == "hlg":  # from the scene's light to the display's
        scene = light @ _LUMA_2020
        light = light * (PEAK * np.maximum(scene, 1e-6) ** (_HLG_GAMMA - 1))[..., None]
    if transfer != "sdr":
        brightest = light.max(axis=-1)
        steps = np.sqrt(np.clip(brightest / PEAK, 0, 1)) * (len(_scales()) - 1)
        light = light * _scales()[steps.astype(np.int32)][..., None]
    if wide:
        light = light @ _TO_709.T
    place = np.sqrt(np.clip(light / WHITE, 0, 1)) * (len(_levels()) - 1)
    return _levels()[(place + 0.5).astype(np.int32)]


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """PQ signal 0..1 → cd/m² (ST 2084)."""
    power = np.power(np.clip(signal, 0, 1), 1 / _PQ_M2)
    return 10000 * (np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)) ** (1 / _PQ_M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """cd/m² → PQ signal 0..1."""
    power = np.power(np.clip(np.asarray(light) / 10000, 0, 1), _PQ_M1)
    return ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """HLG signal 0..1 → light of the scene 0..1 (BT.2100)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    x = np.clip(signal, 0, 1)
    return np.where(x <= 0.5, x**2 / 3, (np.exp((x - c) / a) + b) / 12)


def compressed(light: np.ndarray) -> np.ndarray:
    """cd/m² up to `PEAK` → cd/m² up to `WHITE` (BT.2390 EETF, black at zero)."""
    peak = light_to_pq(np.asarray(PEAK))
    x, most = light_to_pq(np.minimum(light, PEAK)) / peak, light_to_pq(np.asarray(WHITE)) / peak
    knee = 1.5 * most - 0.5
    t = np.clip((x - knee) / (1 - knee), 0, 1)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_light(np.where(x < knee, x, curve) * peak)


_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 32
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 128, 2392 / 128


@lru_cache
def _light_of(transfer: str) -> np.ndarray:
    """float32 [65536]: cd/m² of every signal; for HLG the scene's light 0..1."""
    signal = np.arange(65536) / 65535
    if transfer == "pq":
        return np.minimum(pq_to_light(signal), PEAK).astype(np.float32)
    if transfer == "hlg":
        return hlg_to_scene(signal).astype(np.float32)
    return (WHITE * signal**_SDR_GAMMA).astype(np.float32)


@lru_cache
def _scales() -> np.ndarray:
    """float32 [65536]: what a pixel is multiplied by, at the square root of its brightest channel over `PEAK`."""
    light = PEAK * (np.arange(65536) / 65535) ** 2
    light[0] = light[1]
    return (compressed(light) / light).astype(np.float32)


@lru_cache
def _levels() -> np.ndarray:
    """uint8 [65536]: the SDR level at the square root of light over `WHITE`."""
    return np.round(255 * ((np.arange(65536) / 65535) ** 2) ** (1 / _SDR_GAMMA)).astype(np.uint8)
