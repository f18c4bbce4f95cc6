"""Image files, read as footage of one frame, so that every stage that reads footage reads them too.

Upright by their EXIF orientation, in RGB; transparency lies on white; sixteen bits become eight; of an animation, the
first picture. Colour profiles are not applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.curate.find import is_image
from openhunyuan.curate.footage import READING, Footage, Frame, Mark, Media
from openhunyuan.curate.split import Shots, Span, packed
from openhunyuan.curate.stage import Stage

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


class Images(Stage):
    """What an image file holds."""

    name: ClassVar[str] = "images"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "reading": READING}


class Still:
    """An image file as footage (`footage.Footage`) of one frame, at one frame a second.

    Raises UserError when it is missing, not an image of a known format, damaged, or unreasonably large.
    """

    promised = 1
    time_base = Fraction(1)

    def __init__(self, path: Path | str) -> None:
        import av

        self.path = Path(path)
        pixels, codec, mode, bits = _read(self.path)
        self.media = Media(
            height=pixels.shape[0], width=pixels.shape[1], rate="1/1", codec=codec, pixel_format=mode, bits=bits
        )
        self._raw = av.VideoFrame.from_ndarray(pixels, format="rgb24")

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frames(self, marks: Sequence[Mark] = ()) -> Iterator[Frame]:
        yield Frame(0, 0, self._raw, self.media)


def _read(path: Path) -> tuple[np.ndarray, str, str, int]:
    """(uint8 [H, W, 3], format, mode, bits) of an image file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise UserError(f"The image {path} does not exist.")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            codec, mode = str(image.format).lower(), image.mode
            image.load()
            image = ImageOps.exif_transpose(image)
            if mode.startswith("I"):
                levels = np.asarray(image).astype(np.int64)
                gray = (np.clip(levels, 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2), codec, mode, 16
            if mode == "F":
                raise UserError(f"{path} holds floating point levels; save it with 8 or 16 bits.")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            return np.ascontiguousarray(image.convert("RGB")), codec, mode, 8
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read as an image ({', '.join(_FORMATS)}).") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} claims more pixels than an image may have here.") from None
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}).") from None


def open_footage(path: Path | str, motion_vectors: bool = False) -> Footage | Still:
    """A video or image file, opened for reading its frames."""
    return Still(path) if is_image(path) else Footage(path, motion_vectors)


def look_at(path: Path | str) -> Shots:
    """An image as the one shot of its file."""
    with Still(path) as still:
        span = Span(start_frame=0, end_frame=1, start_pts=0, end_pts=1, transition="start")
        return Shots(media=still.media, time_base="1/1", num_frames=1, variable=False, times=packed([0]), spans=(span,))
