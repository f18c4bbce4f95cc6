"""From features to camera moves: a few small networks, whose weights come with the package as one safetensors file.

A network gives one number for each primitive. A state (a set of primitives) scores the sum of its members' numbers, and
the probabilities of all states are the softmax of that: primitives that exclude each other do so by construction. A
move's probability is the sum over its states (`primitives.MOVES`). Each network sees a clip in all eight mirrorings,
whose answers are mirrored back and averaged. `recipes.camera_motion` trains the weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.curate.camera.features import COMBINATIONS, NUM_FEATURES, flipped
from openhunyuan.curate.camera.primitives import LABEL_OF_STATE, LABELS, MEMBERS, PRIMITIVES, mirrored

WEIGHTS = Path(__file__).parent / "weights" / "camera.safetensors"


def _primitive_flips() -> np.ndarray:
    """int [8, primitives]: the primitive that each one is in the mirrored clip."""
    rows = []
    for flips in COMBINATIONS:
        row = []
        for name in PRIMITIVES:
            state = frozenset({name})
            for flip in flips:
                state = mirrored(state, flip)
            row.append(PRIMITIVES.index(next(iter(state))))
        rows.append(row)
    return np.array(rows)


PRIMITIVE_FLIPS = _primitive_flips()


@dataclass(frozen=True)
class Classifier:
    """tensors: `mean`, `scale` [F]; `<network>.<layer>.weight` [out, in] and `.bias`; `calibration` [2]."""

    tensors: dict[str, np.ndarray]

    @cached_property
    def networks(self) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]:
        """Layers of every network: weight, bias."""
        count = 1 + max(int(name.split(".")[0]) for name in self.tensors if name[0].isdigit())
        layers = 1 + max(int(name.split(".")[1]) for name in self.tensors if name[0].isdigit())
        t = self.tensors
        return tuple(
            tuple((t[f"{n}.{layer}.weight"], t[f"{n}.{layer}.bias"]) for layer in range(layers)) for n in range(count)
        )

    def states(self, features: np.ndarray) -> np.ndarray:
        """float [B, F] → [B, states] probabilities, in the order of `primitives.STATES`."""
        x = ((flipped(features) - self.tensors["mean"]) / self.tensors["scale"]).clip(-6, 6)
        total = np.zeros((len(features), len(MEMBERS)))
        for layers in self.networks:
            hidden = x
            for weight, bias in layers[:-1]:
                hidden = hidden @ weight.T + bias
                hidden = hidden / (1 + np.exp(-hidden.clip(-60, 60)))  # SiLU
            scores = hidden @ layers[-1][0].T + layers[-1][1]
            # What the mirrored clip's primitive says is said of the clip's own.
            scores = np.take_along_axis(scores, np.broadcast_to(PRIMITIVE_FLIPS, scores.shape), axis=-1).mean(axis=1)
            scores = scores @ MEMBERS.T
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            total += scores / scores.sum(axis=1, keepdims=True)
        return total / len(self.networks)

    def confidence(self, probability: np.ndarray | float) -> np.ndarray:
        """How often a label of this probability is right, 0 to 1, as measured on clips kept back from training."""
        slope, offset = self.tensors["calibration"]
        p = np.clip(np.asarray(probability, float), 1e-6, 1 - 1e-6)
        return 1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + offset)))


def labels_of(states: np.ndarray) -> np.ndarray:
    """[..., states] → [..., labels] in the order of `primitives.LABELS`, "none" last."""
    found = np.zeros((*states.shape[:-1], len(LABELS)))
    for number in range(len(LABELS)):
        found[..., number] = states[..., number == LABEL_OF_STATE].sum(axis=-1)
    return found


def primitives_of(states: np.ndarray) -> np.ndarray:
    """[..., states] → [..., primitives]: the probability that each primitive holds."""
    return states @ MEMBERS


@lru_cache(maxsize=4)
def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """The classifier in a file. Raises UserError when it is missing, damaged or of another layout."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"The weights {path} of the camera classifier do not exist.") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}).") from None
    if "mean" not in tensors or tensors["mean"].shape != (NUM_FEATURES,) or "calibration" not in tensors:
        raise UserError(f"{path} holds no camera classifier of this version; train it again.")
    return Classifier(tensors)


@lru_cache(maxsize=4)
def weights_hash(path: Path = WEIGHTS) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
