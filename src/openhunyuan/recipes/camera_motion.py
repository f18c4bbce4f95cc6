"""Trains the camera classifier on rendered scenes and on virtual moves over photographs; everything is made here, from
one seed, on a CPU.

    python -m openhunyuan.recipes.camera_motion --clips 30000 --output camera.safetensors

Rendered clips are drawn evenly over the fourteen moves, and `NONE_SHARE` of them is none of these; for every
`RENDERED_PER_PHOTOGRAPHED` of them there is one over a photograph, drawn evenly over what a virtual camera can do.
Every clip counts eight times, mirrored and played backwards. The gate is calibrated on clips that the networks did not
see: each fold is judged by networks trained on the other folds, and a logistic curve is fitted to how often a label of
some probability is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import save_safetensors
from openhunyuan.curate.camera.classifier import PRIMITIVE_FLIPS, WEIGHTS, Classifier, labels_of
from openhunyuan.curate.camera.features import NUM_FEATURES, features_of, flipped
from openhunyuan.curate.camera.primitives import COMPOUNDS, LABELS, MEMBERS, MOVES, STATES, State, label_of
from openhunyuan.curate.camera.tracks import Tracker
from openhunyuan.tiny.camera_scenes import FPS, RenderedClip, Split, render_clip
from openhunyuan.tiny.virtual_moves import VIRTUAL_STATES, photographed_clip

NONE_SHARE = 0.15
RENDERED_PER_PHOTOGRAPHED = 10
WIDTHS = (256, 128)
"""Hidden layers of a network."""

DROPOUT = 0.4
BLUR = 0.1
"""Standard deviation of what is added to the features in training, in theirs."""


@dataclass(frozen=True)
class Examples:
    """features float32 [N, F]; states int [N], numbers in `primitives.STATES`."""

    features: np.ndarray
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.states)

    def part(self, chosen: np.ndarray) -> Examples:
        return Examples(self.features[chosen], self.states[chosen])

    def __add__(self, other: Examples) -> Examples:
        return Examples(np.concatenate([self.features, other.features]), np.concatenate([self.states, other.states]))

    @property
    def labels(self) -> np.ndarray:
        """int [N], numbers in `primitives.LABELS`."""
        return np.array([LABELS.index(label_of(STATES[number])) for number in self.states])


def draw_state(rng: np.random.Generator) -> State:
    """A state to render: one of the moves, or at times a roll or a compound."""
    if rng.random() < NONE_SHARE:
        if rng.integers(3):
            return COMPOUNDS[int(rng.integers(len(COMPOUNDS)))]
        return frozenset({("roll left", "roll right")[int(rng.integers(2))]})
    states = list(MOVES.values())[int(rng.integers(len(MOVES)))]
    return states[int(rng.choice(3, p=[0.45, 0.45, 0.1])) if len(states) > 1 else 0]


def features_of_frames(frames: Sequence[np.ndarray] | np.ndarray, fps: float) -> np.ndarray | None:
    """Features of grey frames uint8 [T, h, w]."""
    tracker = Tracker()
    for frame in frames:
        tracker.add(frame)
    return features_of(tracker.tracks(1 / fps))


def rendered(count: int, split: Split = "train", seed: int = 0) -> Examples:
    """That many rendered clips; those in which nothing can be followed are left out."""

    def clips() -> Iterator[RenderedClip]:
        for number in range(count):
            rng = np.random.default_rng([seed, number, int(split == "heldout")])
            yield render_clip(draw_state(rng), rng, split)

    return _examples(clips())


def photographed(count: int, split: Split = "train", seed: int = 0) -> Examples:
    """That many clips of virtual moves over photographs; those in which nothing can be followed, and those whose move
    does not fit into the photograph, are left out."""

    def clips() -> Iterator[RenderedClip]:
        for number in range(count):
            rng = np.random.default_rng([seed, number, 2 + int(split == "heldout")])
            with suppress(UserError):
                yield photographed_clip(VIRTUAL_STATES[number % len(VIRTUAL_STATES)], rng, split)

    return _examples(clips())


def _examples(clips: Iterable[RenderedClip]) -> Examples:
    features, states = [], []
    for clip in clips:
        found = features_of_frames(clip.frames, FPS)
        if found is not None:
            features.append(found)
            states.append(STATES.index(clip.state))
    return Examples(np.stack(features), np.array(states))


# ------------------------------------------------------------------------------------------------------------ training


def _network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = (NUM_FEATURES, *WIDTHS)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], MEMBERS.shape[1]))


def fit(examples: Examples, networks: int = 4, epochs: int = 30, seed: int = 0) -> Classifier:
    """Networks trained on the examples in all mirrorings; not yet calibrated."""
    flips = flipped(examples.features)  # [N, 8, F]
    flat = flips.reshape(-1, NUM_FEATURES)
    mean, scale = flat.mean(axis=0), flat.std(axis=0) + 1e-3
    x = torch.from_numpy(((flips - mean) / scale).clip(-6, 6).astype(np.float32))
    # A mirrored clip's primitive p is the clip's own primitive q: score the states in the clip's own terms.
    back = torch.from_numpy(PRIMITIVE_FLIPS)
    members = torch.from_numpy(MEMBERS.T.copy())
    target = torch.from_numpy(examples.states)
    # Zoom and dolly are one move; which of them it was is worth less than the move.
    same = torch.from_numpy((LABEL_OF[:, None] == LABEL_OF[None, :]).astype(np.float32))
    tensors: dict[str, np.ndarray] = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    for number in range(networks):
        network = _network(seed * 100 + number)
        rng = torch.Generator().manual_seed(seed * 100 + number)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
        batch = 128
        steps = epochs * max(1, len(examples) * 2 // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
        network.train()
        for _ in range(steps):
            chosen = torch.randint(len(examples), (batch,), generator=rng)
            flip = torch.randint(len(back), (batch,), generator=rng)
            inputs = x[chosen, flip] + BLUR * torch.randn(batch, NUM_FEATURES, generator=rng)
            scores = torch.gather(network(inputs), 1, back[flip]) @ members
            log_p = scores.log_softmax(dim=1)
            wanted = target[chosen]
            state_loss = -log_p.gather(1, wanted[:, None])[:, 0]
            move_loss = -(log_p.masked_fill(same[wanted] == 0, -1e9)).logsumexp(dim=1)
            loss = (0.2 * state_loss + 0.8 * move_loss).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        for place, layer in enumerate(linear):
            tensors[f"{number}.{place}.weight"] = layer.weight.detach().numpy()
            tensors[f"{number}.{place}.bias"] = layer.bias.detach().numpy()
    tensors["calibration"] = np.array([1.0, 0.0], np.float32)
    return Classifier(tensors)


LABEL_OF = np.array([LABELS.index(label_of(state)) for state in STATES])


def calibrate(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[slope, offset] of the logistic curve over the logit of a label's probability that says how often it is right."""
    x = torch.from_numpy(np.log(probabilities.clip(1e-6, 1 - 1e-6) / (1 - probabilities.clip(1e-6, 1 - 1e-6))))
    y = torch.from_numpy(right.astype(float))
    curve = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([curve], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = curve[0] * x + curve[1]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, y) + 1e-3 * ((curve[0] - 1) ** 2)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return curve.detach().numpy().astype(np.float32)


def train(examples: Examples, networks: int = 4, folds: int = 3, epochs: int = 30, seed: int = 0) -> Classifier:
    """A calibrated classifier."""
    fold = np.random.default_rng(seed).integers(0, folds, len(examples))
    probability, right = np.zeros(len(examples)), np.zeros(len(examples), bool)
    for number in range(folds):
        inside = fold == number
        judged = examples.part(inside)
        found = labels_of(fit(examples.part(~inside), max(1, networks // 2), epochs, seed + 1).states(judged.features))
        probability[inside] = found.max(axis=1)
        right[inside] = found.argmax(axis=1) == judged.labels
    final = fit(examples, networks, epochs, seed)
    # "None" is never put into a caption, so the curve is that of the moves; wrong moves for nothing are in it.
    return Classifier({**final.tensors, "calibration": calibrate(probability, right)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openhunyuan.recipes.camera_motion", description=__doc__)
    parser.add_argument("--clips", type=int, default=30000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    examples = rendered(args.clips, seed=args.seed)
    if args.clips >= RENDERED_PER_PHOTOGRAPHED:
        examples += photographed(args.clips // RENDERED_PER_PHOTOGRAPHED, seed=args.seed)
    classifier = train(examples, args.networks, seed=args.seed)
    save_safetensors(args.output, {name: torch.from_numpy(value) for name, value in classifier.tensors.items()})


if __name__ == "__main__":
    main()
