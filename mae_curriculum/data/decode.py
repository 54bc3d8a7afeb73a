"""Decode image files to (c, h, w) uint8 tensors.

simplejpeg decodes plain JPEGs, about twice as fast as Pillow, which decodes all other image files; `.npy` arrays may
have any number of channels. Gray, palette, CMYK and 16-bit images and EXIF rotation are decoded as a viewer would show
them; transparency is dropped.

To decode the region of a crop alone, as nvImageCodec can on a CPU, gives the same bits and makes loading ImageNet's
photographs 12% faster, as most of the time goes to the entropy coding before the region: not worth a dependency.
"""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mae_curriculum.data.stored import NPY_SIGNATURE, read_array_head

MAX_PIXELS = 89_478_485
"""Number of pixels above which an image is refused: Pillow's own limit, 1/4 GB of RGB."""

JPEG_SIGNATURE = b"\xff\xd8\xff"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

TIFF_SIGNATURES = (b"II*\0", b"MM\0*")

ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image for each value of EXIF's Orientation."""

ROTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")
"""One of them is in every JPEG file whose metadata, EXIF or XMP, ask for a rotation."""


class BrokenImageError(Exception):
    """The file holds no usable image; the message is a short reason."""


class ChannelsError(BrokenImageError):
    """The image has another number of channels than the model, and cannot be converted."""


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file, as `decode_image`."""
    return decode_image(path.read_bytes, channels)


def decode_image(read: Callable[[], bytes], channels: int) -> Tensor:
    """Return an encoded image as (channels, h, w) uint8.

    read      returns the content of an image file.
    channels  1 or 3 for image files, which are converted; any number for .npy arrays, which must match.
    Raises    BrokenImageError if the file cannot be read or a side is shorter than 2 pixels.
    """
    try:
        image = _decode(read(), channels)
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image") from error
    except Exception as error:  # parsers raise almost anything for damaged bytes
        raise BrokenImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if min(image.shape[1:]) < 2:
        raise BrokenImageError(f"{image.shape[2]}x{image.shape[1]} pixels is too small")
    return image


def check_array(stream: BinaryIO) -> None:
    """Raise BrokenImageError if a .npy file holds no image; only its head is read. A damaged file passes."""
    with suppress(OSError, EOFError, ValueError):
        if why := _why_no_image(*read_array_head(stream)):
            raise BrokenImageError(why)


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Convert an image (c, h, w) uint8 from gray to RGB or back; raises ChannelsError for any other conversion."""
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if len(image) == 3 and channels == 1:
        gray: Tensor = F.rgb_to_grayscale(image)
        return gray
    raise ChannelsError(f"{len(image)} channels, model.channels is {channels}")


def _decode(content: bytes, channels: int) -> Tensor:
    if content.startswith(NPY_SIGNATURE):
        return to_channels(_from_array(_read_array(content)), channels)
    if channels not in (1, 3):
        raise ChannelsError(f"image files have 1 or 3 channels, model.channels is {channels}: store .npy arrays")
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata, which does not affect pixels
        return _from_array(_pixels(content, gray=channels == 1))


def _read_array(content: bytes) -> NDArray[Any]:
    """Return the array in a .npy file, as np.load does; but heads that many files share are parsed once."""
    if content[6:8] != b"\1\0":  # another version of the format
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return array
    start = 10 + int.from_bytes(content[8:10], "little")
    shape, is_fortran, dtype = _parse_head(content[8:start])
    pixels = np.frombuffer(content, dtype, math.prod(shape), start)
    return pixels.reshape(shape, order="F" if is_fortran else "C")


@lru_cache(maxsize=1024)
def _parse_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and type, of the head of a .npy file without its first 8 bytes."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(head))


def _pixels(content: bytes, *, gray: bool) -> NDArray[Any]:
    """Decode an image file to (h, w) gray or (h, w, 3) RGB values."""
    with suppress(ValueError):  # simplejpeg refuses stray bytes, past which Pillow reads
        if _is_plain_jpeg(content):
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "GRAY" if gray else "RGB")
            return pixels
    image = _open(content)
    rotation = _rotation(image)
    if image.mode.startswith("I"):  # which Pillow would clip at 255 instead of scaling
        image = Image.fromarray(_scale_integers(image))
    if rotation is not None:
        image = image.transpose(rotation)
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if gray else "RGB"))


def _is_plain_jpeg(content: bytes) -> bool:
    """Return whether a file is a gray or color JPEG that is not to be rotated; raises ValueError for a damaged head.

    Pillow reads the whole head, a tenth of the decoding's time, and does so only for those whose metadata may ask for
    a rotation.
    """
    if not content.startswith(JPEG_SIGNATURE):
        return False
    height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    if colors not in ("Gray", "YCbCr", "RGB") or height * width > MAX_PIXELS:
        return False
    head = _head(content)
    may_be_rotated = any(mark in head for mark in ROTATION_MARKS)
    return not may_be_rotated or _rotation(_open(content)) is None


def _head(jpeg: bytes) -> bytes:
    """Return what stands before the pixels of a JPEG file; all of it if a marker is missing."""
    place = 2
    while jpeg[place : place + 1] == b"\xff":
        marker, length = jpeg[place + 1 : place + 2], int.from_bytes(jpeg[place + 2 : place + 4])
        if marker == b"\xda":  # the pixels start
            return jpeg[:place]
        if marker == b"\xff":  # a fill byte
            break
        place += 2 + length
    return jpeg


def _open(content: bytes) -> Image.Image:
    """Open an image file; a PNG file that Pillow refuses, without the chunks that do not matter for its pixels."""
    try:
        return _open_bounded(content)
    except (BrokenImageError, Image.DecompressionBombError):
        raise
    except Exception:  # its parser raises almost anything
        if content.startswith(TIFF_SIGNATURES):
            kind = _describe_tiff(content)
            raise ValueError(f"a TIFF file of {kind} cannot be read: store it as a .npy array") from None
        if not content.startswith(PNG_SIGNATURE):
            raise
    return _open_bounded(_pixel_chunks(content))


def _open_bounded(content: bytes) -> Image.Image:
    """Open an image file of at most `MAX_PIXELS`; a PNG file is decoded, as its last chunks may break it too."""
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.width * image.height > MAX_PIXELS:
        raise BrokenImageError(f"{image.width}x{image.height} is above the limit of {MAX_PIXELS:,} pixels")
    if image.format == "PNG":
        image.load()
    return image


def _describe_tiff(content: bytes) -> str:
    """Return the number of bands of a TIFF file, and of bits of each."""
    directory, file = ImageFileDirectory_v2(content[:8]), io.BytesIO(content)
    file.seek(directory.next)
    directory.load(file)
    return f"{directory.get(Tag.SamplesPerPixel, 1)} bands of {directory.get(Tag.BitsPerSample, (1,))[0]} bits"


def _pixel_chunks(png: bytes) -> bytes:
    """Return a PNG file without comments, color profiles and other chunks that its pixels do not need."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, start)
        chunk = png[start : start + 12 + length]
        name, checksum = chunk[4:8], chunk[-4:]
        is_critical = name[:1].isupper()
        is_intact = struct.pack(">I", zlib.crc32(chunk[4:-4])) == checksum
        if is_critical or (name in (b"tRNS", b"eXIf") and is_intact):
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def _rotation(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image as its EXIF data asks; None if it is upright, or if they cannot be read."""
    try:
        return ROTATIONS.get(image.getexif().get(Tag.Orientation, 1))
    except Exception:  # its parser raises almost anything for odd tags
        return None


def _scale_integers(image: Image.Image) -> NDArray[np.uint8]:
    """Scale gray values of 16 bits, or of 32 in TIFF files, to 0..255, as a viewer shows them."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if tags.get(Tag.BitsPerSample, (16,))[0] == 32:
        if tags.get(Tag.SampleFormat, (1,))[0] != 1:
            raise ValueError("signed 32-bit pixels of unknown range")
        values = values.astype(np.int32).view(np.uint32) >> 16
    scaled = _to_uint8(values)
    white_is_zero = tags.get(Tag.PhotometricInterpretation) == 0
    return 255 - scaled if white_is_zero else scaled


def _from_array(array: NDArray[Any]) -> Tensor:
    """Convert pixels (h, w) or (h, w, c), uint8 or uint16, to (c, h, w) uint8."""
    if why := _why_no_image(array.shape, array.dtype):
        raise ValueError(why)
    if array.dtype == np.uint16:
        array = _to_uint8(array)
    pixels = torch.from_numpy(np.require(array, requirements="W"))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _why_no_image(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Return why an array is no image, or None if it is one."""
    if dtype in (np.uint8, np.uint16) and len(shape) in (2, 3):
        return None
    return f"array of {dtype} {shape}; arrays must be uint8 or uint16, (h, w) or (h, w, c)"


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale 16-bit values, 0..65535, to 0..255."""
    scaled: NDArray[np.uint8] = (np.clip(array, 0, 65535) / 257 + 0.5).astype(np.uint8)
    return scaled
