"""Decode image files to (c, h, w) uint8 tensors.

simplejpeg decodes plain JPEGs, about twice as fast as Pillow, which decodes all other image files; `.npy` arrays may
have any number of channels. Gray, palette, CMYK and 16-bit images and EXIF rotation are decoded as a viewer would show
them; transparency is dropped.
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
"""Suffixes, in lower case, of the files that count as images."""


class BrokenImageError(Exception):
    """The file holds no usable image; the message is a short reason."""


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file as (channels, h, w) uint8.

    channels  1 or 3 for image files, which are converted; any number for .npy arrays, which must match.
    Raises    BrokenImageError if the file cannot be read or a side is shorter than 2 pixels.
    """
    try:
        image = _decode(path.read_bytes(), path.suffix.lower(), channels)
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image") from error
    except Exception as error:  # parsers raise almost anything for damaged bytes
        raise BrokenImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if min(image.shape[1:]) < 2:
        raise BrokenImageError(f"{image.shape[2]}x{image.shape[1]} pixels is too small")
    return image


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Convert an image (c, h, w) uint8 from gray to RGB or back; raises BrokenImageError for any other conversion."""
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if len(image) == 3 and channels == 1:
        gray: Tensor = F.rgb_to_grayscale(image)
        return gray
    raise BrokenImageError(f"{len(image)} channels, model.channels is {channels}")


def _decode(content: bytes, suffix: str, channels: int) -> Tensor:
    if suffix == ".npy":
        return to_channels(_from_array(np.load(io.BytesIO(content), allow_pickle=False)), channels)
    if channels not in (1, 3):
        raise BrokenImageError(f"image files have 1 or 3 channels, model.channels is {channels}: store .npy arrays")
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata, which does not affect pixels
        return _from_array(_pixels(content, gray=channels == 1))


def _pixels(content: bytes, *, gray: bool) -> NDArray[Any]:
    """Decode an image file to (h, w) gray or (h, w, 3) RGB values."""
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.format == "JPEG" and image.mode in ("L", "RGB") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "GRAY" if gray else "RGB")
        return pixels
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255 instead of scaling
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if gray else "RGB"))


def _from_array(array: NDArray[Any]) -> Tensor:
    """Convert pixels (h, w) or (h, w, c), uint8 or uint16, to (c, h, w) uint8."""
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise ValueError(f"array of {array.dtype} {array.shape}; arrays must be uint8 or uint16, (h, w) or (h, w, c)")
    if array.dtype == np.uint16:
        array = _to_uint8(array)
    pixels = torch.from_numpy(np.require(array, requirements="W"))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale 16-bit values, 0..65535, to 0..255."""
    scaled: NDArray[np.uint8] = (np.clip(array, 0, 65535) / 257 + 0.5).astype(np.uint8)
    return scaled
