import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mae_curriculum.data.decode import MAX_PIXELS, BrokenImageError, read_image, to_channels


def gradient(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """A smooth image whose left is red, right green, top dark."""
    x, y = np.linspace(0, 1, width), np.linspace(0.3, 1, height)[:, None]
    return (np.stack([(1 - x) * y, x * y, 0.5 * y + 0 * x], 2) * 255).astype(np.uint8)


def write(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def close_to(image: torch.Tensor, expected: NDArray[Any], within: float) -> bool:
    return bool((image.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).__abs__().mean() < within)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_every_file_format_is_decoded(ending: str, tmp_path: Path) -> None:
    image = read_image(write(tmp_path / f"a.{ending}", Image.fromarray(gradient())), 3)
    assert (image.shape, image.dtype) == ((3, 40, 60), torch.uint8)
    assert close_to(image, gradient(), within=3)  # jpeg, webp and gif lose a little


def test_gray_files_fill_three_channels(tmp_path: Path) -> None:
    gray = gradient()[..., 1]
    for ending in ("jpg", "png"):
        image = read_image(write(tmp_path / f"a.{ending}", Image.fromarray(gray)), 3)
        assert close_to(image, np.stack([gray] * 3, 2), within=2)


def test_color_files_become_gray_by_luminance(tmp_path: Path) -> None:
    luminance = (gradient() @ np.array([0.299, 0.587, 0.114]))[..., None]
    for ending in ("jpg", "png"):
        assert close_to(
            read_image(write(tmp_path / f"a.{ending}", Image.fromarray(gradient())), 1), luminance, within=2
        )


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_files_are_scaled_not_clipped(ending: str, tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = read_image(write(tmp_path / f"a.{ending}", Image.fromarray(wide)), 1)
    assert close_to(image, (wide / 257)[..., None], within=1)


def test_cmyk_jpegs_keep_their_colors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", Image.fromarray(gradient()).convert("CMYK"), quality=95)
    assert close_to(read_image(path, 3), gradient(), within=3)


def test_palette_files_keep_their_colors_with_transparency_too(tmp_path: Path) -> None:
    palette = Image.fromarray(gradient()).quantize(200)
    expected = np.asarray(palette.convert("RGB"))
    assert close_to(read_image(write(tmp_path / "a.png", palette), 3), expected, within=0.01)
    assert close_to(
        read_image(write(tmp_path / "b.png", palette, transparency=bytes([0, 128])), 3), expected, within=0.01
    )


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_exif_rotation_is_applied(ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown rotated 90 degrees clockwise
    path = write(tmp_path / f"a.{ending}", Image.fromarray(gradient()), exif=exif)
    assert close_to(read_image(path, 3), np.rot90(gradient(), k=-1), within=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_may_have_any_number_of_channels(dtype: type, tmp_path: Path) -> None:
    array: NDArray[Any] = (np.arange(5 * 6 * 7).reshape(5, 6, 7) * (257 if dtype is np.uint16 else 1)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    image = read_image(tmp_path / "a.npy", 7)
    assert torch.equal(image, torch.arange(5 * 6 * 7, dtype=torch.uint8).view(5, 6, 7).permute(2, 0, 1))


def encoded(ending: str, pixels: NDArray[np.uint8] | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient(200, 200) if pixels is None else pixels).save(buffer, ending)
    return buffer.getvalue()


BROKEN = {
    "text.jpg": b"this is no image at all\n" * 9,
    "empty.jpg": b"",
    "head.jpg": b"\xff\xd8\xff\xe0 and no more",
    "cut.jpg": encoded("JPEG")[: len(encoded("JPEG")) // 2],
    "cut.png": encoded("PNG")[: len(encoded("PNG")) // 2],
    "cut.npy": b"\x93NUMPY\x01\x00",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_raises_a_one_line_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(BrokenImageError) as caught:
        read_image(tmp_path / name, 3)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_says_why_an_image_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="1x1 pixels is too small"):
        read_image(write(tmp_path / "a.png", Image.new("RGB", (1, 1))), 3)
    with pytest.raises(BrokenImageError, match="No such file"):
        read_image(tmp_path / "gone.png", 3)
    np.save(tmp_path / "f.npy", np.zeros((4, 4)))
    with pytest.raises(BrokenImageError, match=r"float64 \(4, 4\); arrays must be uint8 or uint16"):
        read_image(tmp_path / "f.npy", 1)
    with pytest.raises(BrokenImageError, match=r"model.channels is 5: store .npy arrays"):
        read_image(write(tmp_path / "b.png", Image.new("RGB", (4, 4))), 5)
    with pytest.raises(BrokenImageError, match="2 channels, model.channels is 3"):
        to_channels(torch.zeros(2, 4, 4, dtype=torch.uint8), 3)


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of (tag, type, count, value), as a camera writes it."""
    entries, values = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(values))
        values += b"" if len(value) <= 4 else value
        entries += struct.pack("<HHI", tag, kind, count) + place
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values


ODD_TAGS = {
    "a negative resolution": (0x11A, 5, 1, struct.pack("<iI", -1, 0)),
    "two resolutions": (0x11A, 5, 2, struct.pack("<IIII", 72, 1, 72, 1)),
    "text for a number": (0x100, 2, 5, b"wide\0"),
    "a value beyond the end": (0x10F, 2, 10**6, struct.pack("<I", 10**6)),
}


@pytest.mark.parametrize("kind", ODD_TAGS)
def test_rotation_holds_beside_odd_tags(kind: str, tmp_path: Path) -> None:
    data = exif((0x112, 3, 1, struct.pack("<H", 6)), ODD_TAGS[kind])
    path = write(tmp_path / "a.jpg", Image.fromarray(gradient()), exif=data, quality=95)
    assert close_to(read_image(path, 3), np.rot90(gradient(), k=-1), within=3)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file's head."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


XMP = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>')


@pytest.mark.parametrize("before", [b"", segment(0xE2, b"\xff\xda"), b"\xff"], ids=["none", "a marker", "a fill byte"])
def test_rotation_by_xmp_is_applied_whatever_stands_before_it(before: bytes, tmp_path: Path) -> None:
    content = encoded("JPEG", gradient())
    (tmp_path / "a.jpg").write_bytes(content[:2] + before + XMP + content[2:])
    assert close_to(read_image(tmp_path / "a.jpg", 3), np.rot90(gradient(), k=-1), within=3)


def test_a_jpeg_with_stray_bytes_is_read_as_viewers_do(tmp_path: Path) -> None:
    content = encoded("JPEG")
    start = content.index(b"\xff\xdb")
    before_marker = content[:start] + b"\0\0" + content[start:]
    before_end = content[:-2] + b"\x11\x22" + content[-2:]
    for number, stray in enumerate((before_marker, before_end)):
        (tmp_path / f"{number}.jpg").write_bytes(stray)
        assert close_to(read_image(tmp_path / f"{number}.jpg", 3), gradient(200, 200), within=3)


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """A chunk of a PNG file."""
    crc = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


EXTRA_CHUNKS = {
    "a large comment": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
    "a large color profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3_000_000))),
    "a bad checksum of a comment": chunk(b"tEXt", b"Comment\0text", checksum=1),
    "a bad checksum of a resolution": chunk(b"pHYs", bytes(9), checksum=1),
}


@pytest.mark.parametrize("kind", EXTRA_CHUNKS)
def test_chunks_of_a_png_that_do_not_matter_do_not_break_it(kind: str, tmp_path: Path) -> None:
    content = encoded("PNG")
    for number, place in enumerate((content.index(b"IDAT") - 4, content.index(b"IEND") - 4)):
        (tmp_path / f"{number}.png").write_bytes(content[:place] + EXTRA_CHUNKS[kind] + content[place:])
        assert close_to(read_image(tmp_path / f"{number}.png", 3), gradient(200, 200), within=0.01)


def tiff(values: NDArray[Any], photometric: int, sample_format: int = 1) -> bytes:
    """A TIFF file (h, w) or (h, w, bands), in one strip."""
    height, width = values.shape[:2]
    bands, bits = values.size // (height * width), 8 * values.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: bands, 278: height, 339: sample_format}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: values.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.tobytes()


@pytest.mark.parametrize(("dtype", "photometric", "scale"), [("<u2", 1, 257), ("<u2", 0, 257), ("<u4", 1, 16843009)])
def test_wide_tiff_files_are_scaled_and_white_may_be_zero(
    dtype: str, photometric: int, scale: int, tmp_path: Path
) -> None:
    gray = gradient()[..., 1]
    shown = gray if photometric else 255 - gray
    (tmp_path / "a.tif").write_bytes(tiff((shown.astype(np.uint64) * scale).astype(dtype), photometric))
    assert close_to(read_image(tmp_path / "a.tif", 1), gray[..., None], within=0.5)


@pytest.mark.parametrize(("bands", "dtype", "bits"), [(5, np.uint8, 8), (13, np.uint8, 8), (1, np.uint64, 64)])
def test_a_tiff_that_is_no_picture_is_refused_with_what_to_do(
    bands: int, dtype: type, bits: int, tmp_path: Path
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((8, 8, bands), dtype), photometric=1))
    message = f"a TIFF file of {bands} bands of {bits} bits cannot be read: store it as a .npy array"
    with pytest.raises(BrokenImageError, match=message):
        read_image(tmp_path / "a.tif", 3)


def test_an_image_above_the_limit_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    path = write(tmp_path / "a.png", Image.new("1", (side, side)))
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    (tmp_path / "b.png").write_bytes(content[:place] + EXTRA_CHUNKS["a large comment"] + content[place:])
    write(tmp_path / "c.jpg", Image.new("L", (side, side)))
    for name in ("a.png", "b.png", "c.jpg"):
        with pytest.raises(BrokenImageError, match=f"{side}x{side} is above the limit of 89,478,485 pixels"):
            read_image(tmp_path / name, 3)
