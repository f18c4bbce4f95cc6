"""Shape arithmetic between pixels, latents and tokens: the only place that knows 4 x 8 x 8.

The VAE turns ``F = 4n + 1`` frames of ``H x W`` pixels into ``n + 1`` latent frames of ``H/8 x W/8``; the transformer
then reads ``1 x 2 x 2`` latent patches, so H and W are multiples of 16 (report section 4.1, release facts B and C).
"""

from __future__ import annotations

from dataclasses import dataclass

from openhunyuan.base.errors import UserError

TIME_STRIDE = 4
SPACE_STRIDE = 8
PATCH = (1, 2, 2)
SIZE_MULTIPLE = SPACE_STRIDE * PATCH[1]


def check_num_frames(num_frames: int) -> None:
    """Raise ``UserError`` unless ``num_frames`` is 4n + 1 with n >= 0."""
    if num_frames >= 1 and num_frames % TIME_STRIDE == 1:
        return
    if num_frames < 1:
        near = "1"
    else:
        below = (num_frames - 1) // TIME_STRIDE * TIME_STRIDE + 1
        near = f"{below} or {below + TIME_STRIDE}"
    raise UserError(
        f"num_frames is {num_frames}, but it must be 4n + 1 (1 for an image, then 5, 9, 13, ...); use {near}."
    )


def check_side(name: str, pixels: int) -> None:
    """Raise ``UserError`` unless ``pixels`` (the picture's ``name``: height or width) is a positive multiple of 16."""
    if pixels >= SIZE_MULTIPLE and pixels % SIZE_MULTIPLE == 0:
        return
    if pixels < SIZE_MULTIPLE:
        near = str(SIZE_MULTIPLE)
    else:
        below = pixels // SIZE_MULTIPLE * SIZE_MULTIPLE
        near = f"{below} or {below + SIZE_MULTIPLE}"
    raise UserError(f"{name} is {pixels}, but it must be a positive multiple of {SIZE_MULTIPLE} pixels; use {near}.")


@dataclass(frozen=True)
class VideoSize:
    """A video's size in pixels: (frames, height, width). Raises ``UserError`` if the model cannot make it."""

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        check_num_frames(self.num_frames)
        check_side("height", self.height)
        check_side("width", self.width)

    @property
    def latent(self) -> LatentSize:
        """The size of this video's latents."""
        return LatentSize(
            (self.num_frames - 1) // TIME_STRIDE + 1, self.height // SPACE_STRIDE, self.width // SPACE_STRIDE
        )

    @property
    def is_image(self) -> bool:
        """One frame is an image."""
        return self.num_frames == 1

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class LatentSize:
    """A latent's size: (frames, height, width), without channels."""

    frames: int
    height: int
    width: int

    @property
    def video(self) -> VideoSize:
        """The size of the video that decodes from these latents."""
        return VideoSize((self.frames - 1) * TIME_STRIDE + 1, self.height * SPACE_STRIDE, self.width * SPACE_STRIDE)

    def grid(self, patch: tuple[int, int, int] = PATCH) -> tuple[int, int, int]:
        """The token grid (frames, height, width) after patching."""
        sides = (self.frames, self.height, self.width)
        for name, side, step in zip(("frames", "height", "width"), sides, patch, strict=True):
            if side % step:
                raise UserError(f"The latent {name} {side} cannot be divided by the patch size {step}.")
        return self.frames // patch[0], self.height // patch[1], self.width // patch[2]

    def tokens(self, patch: tuple[int, int, int] = PATCH) -> int:
        """How many tokens the transformer sees for these latents."""
        frames, height, width = self.grid(patch)
        return frames * height * width


def aspect_buckets(side: int, step: int = SIZE_MULTIPLE, max_aspect: float = 4.0) -> list[tuple[int, int]]:
    """All (height, width) about as large as a square of ``side`` pixels: multiples of ``step`` with as many
    step x step cells as the square has, or just less.

    For every width, heights run from the largest that the next width still allows to the largest that this one allows;
    the longer side is at most ``max_aspect`` times the shorter one. The release encodes with step 16 below 540 pixels
    and 32 from there on.
    """
    cells = round((side / step) ** 2)
    return [
        (height * step, width * step)
        for width in range(1, cells + 1)
        for height in range(max(cells // (width + 1), 1), cells // width + 1)
        if max(width, height) <= max_aspect * min(width, height)
    ]
