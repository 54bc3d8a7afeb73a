"""Files become pixels: (c, h, w) uint8 tensors, whatever the file holds.

Plain JPEGs go through simplejpeg, which decodes them about twice as fast as Pillow; other image files through Pillow;
`.npy` arrays bring images of any number of channels. Grey, palette, CMYK and 16-bit images and EXIF rotation
are read as a viewer would show them; transparency is dropped.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".npy"}
)
"""Endings, in lower case, of the files that count as images."""


ORIENTATION = ExifTags.Base.Orientation


class BrokenImageError(Exception):
    """A file that gives no usable image; the message says why in a few words."""


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file as (channels, h, w) uint8.

    channels  1 or 3 for image files, which are converted; the array's own number for .npy.
    Raises    BrokenImageError if the file cannot be read or is smaller than 2 pixels on a side.
    """
    try:
        image = _decode(path.read_bytes(), path.suffix.lower(), channels)
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image") from error
    except Exception as error:  # of damaged bytes, parsers raise whatever they stumble over
        raise BrokenImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if min(image.shape[1:]) < 2:
        raise BrokenImageError(f"{image.shape[2]}x{image.shape[1]} pixels are too few")
    return image


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Turn grey into RGB or RGB into grey, (c, h, w) uint8; raises BrokenImageError for any other change."""
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if len(image) == 3 and channels == 1:
        grey: Tensor = F.rgb_to_grayscale(image)
        return grey
    raise BrokenImageError(f"{len(image)} channels, model.channels is {channels}")


def _decode(content: bytes, suffix: str, channels: int) -> Tensor:
    if suffix == ".npy":
        return to_channels(_from_array(np.load(io.BytesIO(content), allow_pickle=False)), channels)
    if channels not in (1, 3):
        raise BrokenImageError(
            f"an image file gives 1 or 3 channels, model.channels is {channels}: store .npy arrays (h, w, c)"
        )
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata, which does not change the pixels
        return _from_array(_pixels(content, grey=channels == 1))


def _pixels(content: bytes, *, grey: bool) -> NDArray[Any]:
    """Decode an image file to (h, w) grey or (h, w, 3) colour values."""
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.format == "JPEG" and image.mode in ("L", "RGB") and image.getexif().get(ORIENTATION, 1) == 1:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "GRAY" if grey else "RGB")
        return pixels
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling it
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if grey else "RGB"))


def _from_array(array: NDArray[Any]) -> Tensor:
    """Turn pixels (h, w) or (h, w, c), uint8 or uint16, into (c, h, w) uint8."""
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise ValueError(f"an array of {array.dtype} {array.shape}; arrays are uint8 or uint16, (h, w) or (h, w, c)")
    pixels = torch.from_numpy(np.require(array if array.dtype == np.uint8 else _to_uint8(array), requirements="W"))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale 16-bit values, 0..65535, to 0..255."""
    scaled: NDArray[np.uint8] = (np.clip(array, 0, 65535) / 257 + 0.5).astype(np.uint8)
    return scaled
