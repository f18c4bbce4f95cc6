"""Training of the camera classifier, on features that are made up and on a few rendered clips."""

import numpy as np

from openhunyuan.curate.camera.classifier import labels_of, primitives_of
from openhunyuan.curate.camera.features import NUM_FEATURES, STARTS, flipped
from openhunyuan.curate.camera.primitives import LABELS, PRIMITIVES, STATES
from openhunyuan.recipes.camera_motion import Examples, calibrate, draw_state, fit, photographed, rendered
from openhunyuan.tiny.virtual_moves import VIRTUAL_STATES


def made_up(count: int, seed: int) -> Examples:
    """Turns to the left and right, told apart by the sign of the horizontal flow, and standing cameras."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)
    features = 0.1 * rng.normal(size=(count, NUM_FEATURES)).astype(np.float32)
    flow = np.array([1.0, -1.0, 0.0])[kind, None]  # the picture goes the other way
    features[:, [STARTS["mean over speed"], STARTS["mean"]]] += flow  # the constant term, over the speed and by itself
    features[:, STARTS["zones"] : STARTS["zones"] + 9] += flow  # and the horizontal flow of all parts of the picture
    numbers = [STATES.index(frozenset({name})) for name in ("yaw left", "yaw right", "still")]
    return Examples(features, np.array(numbers)[kind])


def test_a_fit_learns_what_can_be_told_and_treats_left_as_right() -> None:
    classifier = fit(made_up(200, 0), networks=1, epochs=40)
    judged = made_up(60, 1)
    states = classifier.states(judged.features)
    np.testing.assert_allclose(states.sum(axis=1), 1, atol=1e-6)
    assert (labels_of(states).argmax(axis=1) == judged.labels).mean() > 0.95
    mirrored = classifier.states(flipped(judged.features)[:, 4])  # left to right
    left, right = (PRIMITIVES.index(name) for name in ("yaw left", "yaw right"))
    np.testing.assert_allclose(primitives_of(mirrored)[:, left], primitives_of(states)[:, right], atol=1e-5)


def test_calibration_says_how_often_a_label_is_right() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.3, 0.999, 4000)
    slope, offset = calibrate(said, rng.random(4000) < said**2)  # surer than it should be
    confidence = 1 / (1 + np.exp(-(slope * np.log(0.9 / 0.1) + offset)))
    assert abs(confidence - 0.81) < 0.03


def test_clips_are_drawn_over_all_moves_and_rendered_into_features() -> None:
    rng = np.random.default_rng(0)
    states = [draw_state(rng) for _ in range(800)]
    examples = Examples(np.zeros((800, 1)), np.array([STATES.index(state) for state in states]))
    counts = np.bincount(examples.labels, minlength=len(LABELS))
    assert counts.min() > 20 and 80 < counts[-1] < 160
    few = rendered(3, seed=1)
    assert few.features.shape == (len(few), NUM_FEATURES) and np.isfinite(few.features).all()
    np.testing.assert_array_equal(few.features, rendered(3, seed=1).features)


def test_photographs_are_moved_over_into_features() -> None:
    few = photographed(8, seed=1)
    assert few.features.shape == (len(few), NUM_FEATURES) and len(few) >= 6
    assert {STATES[number] for number in few.states} <= set(VIRTUAL_STATES)
    both = rendered(2, seed=1) + few
    assert len(both) == 2 + len(few) and np.array_equal(both.features[2:], few.features)
