"""Pictures of every kind are read as they are displayed, or refused in one line that names the file."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bigmodel.errors import UserError
from bigmodel.readers import pictures

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5), np.uint8)
RGB = RNG.integers(0, 256, (6, 5, 3), np.uint8)


def encoded(image, kind="png", **options):
  with io.BytesIO() as file:
    image.save(file, kind, **options)
    return file.getvalue()


def read(tmp_path, *contents, size=0, name="a.png"):
  files = []
  for i, content in enumerate(contents):
    files.append(tmp_path / f"{i}{name}")
    files[-1].write_bytes(content)
  common = pictures.survey(files, size)
  return [pictures.read(file, common, size) for file in files]


def one(tmp_path, image, kind="png", **options):
  (decoded,) = read(tmp_path, encoded(image, kind, **options))
  return decoded


def with_alpha(colour, alpha):
  return Image.fromarray(np.dstack([np.broadcast_to(np.uint8(colour), (1, 2, 3)), np.uint8([alpha])]))


@pytest.mark.parametrize(
  ("image", "kind", "pixels", "remark"),
  [
    (Image.fromarray(GREY), "png", GREY[..., None], ""),
    (Image.fromarray(RGB), "png", RGB, ""),
    *((Image.fromarray(RGB), kind, RGB, "") for kind in ("bmp", "tiff", "ppm")),
    (Image.fromarray(GREY), "ppm", GREY[..., None], ""),  # PGM
    (Image.fromarray(GREY > 99), "png", 255 * (GREY > 99)[..., None], ""),
    (Image.fromarray(RGB).quantize(64), "png", np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB")), ""),
    (Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), "png", RGB, ""),
    (with_alpha([0, 0, 200], [0, 255]), "png", [[[255, 255, 255], [0, 0, 200]]], "put on white"),
    (with_alpha([9, 9, 9], [0, 0]), "png", [[[255] * 3] * 2], "everywhere"),
    (with_alpha([0, 0, 0], [0, 255]).convert("LA"), "png", [[[255], [0]]], "put on white"),
    (Image.fromarray(RGB).convert("CMYK"), "tiff", RGB, "CMYK"),
    (Image.fromarray(np.uint16([[0, 65535, 257 * 7]])), "png", [[[0], [255], [7]]], "from 0 to 65535"),
    (Image.fromarray(np.uint16([[0, 4095, 2000]])), "tiff", [[[0], [255], [2000 * 255 / 4095]]], "12-bit"),
    (Image.fromarray(np.int32([[0, 65535]])), "tiff", [[[0], [255]]], "from 0 to 65535"),
    (Image.fromarray(np.float32([[0, 1, 0.5]])), "tiff", [[[0], [255], [127.5]]], "floats from 0 to 1"),
    (Image.fromarray(np.float32([[0, 255, 3.5]])), "tiff", [[[0], [255], [3.5]]], "floats from 0 to 255"),
  ],
)
def test_modes(tmp_path, image, kind, pixels, remark):
  decoded = one(tmp_path, image, kind)
  np.testing.assert_allclose(decoded.pixels, pixels, atol=1e-4)
  deep = image.mode in ("I", "F", "I;16")
  assert decoded.pixels.dtype == (np.float32 if deep else np.uint8)
  assert remark in " ".join(decoded.remarks)
  assert bool(remark) == bool(decoded.remarks)


def test_lossy_formats_are_close(tmp_path):
  smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8)[..., None] * np.uint8([4, 3, 2])
  for kind, options in (("jpeg", {"quality": 95}), ("webp", {"quality": 95}), ("avif", {"quality": 95})):
    if kind == "avif" and "AVIF" not in Image.SAVE:
      continue
    near = one(tmp_path, Image.fromarray(smooth), kind, **options).pixels
    assert np.abs(near.astype(int) - smooth).mean() < 6, kind
  inverted = one(tmp_path, Image.fromarray(smooth).convert("CMYK"), "jpeg", quality=95)  # as Adobe writes it
  assert np.abs(inverted.pixels.astype(int) - smooth).mean() < 6
  lab = one(tmp_path, Image.fromarray(np.uint8([[[255, 0, 0]]]), "LAB"), "tiff")
  assert lab.pixels.min() > 250


def test_modes_of_a_folder_are_joined(tmp_path):
  grey, colour = encoded(Image.fromarray(GREY)), encoded(Image.fromarray(RGB))
  first, second = read(tmp_path, grey, colour)
  np.testing.assert_array_equal(first.pixels, np.repeat(GREY[..., None], 3, axis=2))
  np.testing.assert_array_equal(second.pixels, RGB)
  first, second, deep = read(tmp_path, grey, colour, encoded(Image.fromarray(np.uint16(GREY) * 257)))
  assert {picture.pixels.dtype for picture in (first, second, deep)} == {np.dtype(np.float32)}
  np.testing.assert_allclose(deep.pixels, first.pixels, atol=1e-4)
  np.testing.assert_array_equal(second.pixels, RGB)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, kind, orientation):
  shades = np.repeat(np.repeat(np.uint8([[0, 100, 200], [50, 150, 250]]), 16, 0), 16, 1)
  exif = Image.Exif()
  exif[274] = orientation
  options = {"lossless": True} if kind == "webp" else {}
  decoded = one(tmp_path, Image.fromarray(shades).convert("RGB"), kind, exif=exif, **options)
  turned = {
    1: shades,
    2: shades[:, ::-1],
    3: shades[::-1, ::-1],
    4: shades[::-1],
    5: shades.T,
    6: np.rot90(shades, -1),
    7: shades[::-1, ::-1].T,
    8: np.rot90(shades),
  }[orientation]
  assert np.abs(decoded.pixels[..., 0].astype(int) - turned).max() < 9
  assert bool(decoded.remarks) == (orientation > 1)


def test_the_first_frame_is_read(tmp_path):
  frames = [Image.fromarray(np.full((4, 4), shade, np.uint8)) for shade in (10, 200)]
  for kind in ("gif", "tiff", "png", "webp"):
    options = {"lossless": True} if kind == "webp" else {}
    decoded = one(tmp_path, frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decoded.pixels == 10).all()
    assert decoded.remarks == ("the first of several in their file",)


def test_sixteen_bits_are_scaled_down_smoothly(tmp_path):
  ramp = np.add.outer(np.arange(0, 64000, 1000), np.zeros(64)).astype(np.uint16)
  (decoded,) = read(tmp_path, encoded(Image.fromarray(ramp)), size=4)
  assert decoded.pixels.shape == (4, 4, 1)
  assert (np.diff(decoded.pixels[:, 0, 0]) > 40).all()


def png_of_size(width, height):
  import zlib

  def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

  header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = encoded(Image.fromarray(RGB))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "it is empty"),
    (b"some text\n" * 9, r"cannot identify a picture in it \(it begins with b'some text"),
    (b"<!DOCTYPE html><html>", "it is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
    (WHOLE[:-30], "truncated"),
    (WHOLE[:20], "cannot"),
    (encoded(Image.fromarray(RGB), "jpeg")[:-50], "(?i)truncated"),
    (png_of_size(20_000, 20_000), "20,000 x 20,000 pixels, more than 178,956,970"),
    (png_of_size(1 << 30, 1 << 30), "more than"),
    (encoded(Image.fromarray(np.int32([[-5, 7]])), "tiff"), "has the value -5"),
    (encoded(Image.fromarray(np.int32([[0, 70000]])), "tiff"), "has the value 70000"),
    (encoded(Image.fromarray(np.float32([[0, 300]])), "tiff"), "has the value 300.*data.name=arrays"),
    (encoded(Image.fromarray(np.float32([[0, np.nan]])), "tiff"), "not finite"),
  ],
)
def test_refused(tmp_path, content, message):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, content)
  assert "0a.png" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_huge_jpeg_is_read_at_a_fraction_of_its_size(tmp_path, monkeypatch):
  ramp = np.broadcast_to(np.arange(0, 200, dtype=np.uint8)[:, None, None], (200, 200, 3))
  (exact,) = read(tmp_path, encoded(Image.fromarray(ramp), "jpeg"), size=8)
  monkeypatch.setattr(pictures, "LARGEST", 10_000)
  with pytest.raises(UserError, match="200 x 200"):
    read(tmp_path, encoded(Image.fromarray(ramp), "png"), size=8)
  (near,) = read(tmp_path, encoded(Image.fromarray(ramp), "jpeg"), size=8)
  assert np.abs(near.pixels.astype(int) - exact.pixels).max() < 9


def mutated(seed, content):
  """Valid bytes with a few of them flipped, cut, inserted or repeated."""
  random_ = random.Random(seed)
  data = bytearray(content)
  for _ in range(random_.randint(1, 4)):
    at, length = random_.randrange(len(data) + 1), random_.randint(1, 9)
    match random_.randrange(4):
      case 0 if at < len(data):
        data[at] ^= 1 << random_.randrange(8)
      case 1:
        del data[at : at + length]
      case 2:
        data[at:at] = random_.randbytes(length)
      case _:
        data[at:at] = data[at : at + length]
  return bytes(data)


VALID = [
  WHOLE,
  encoded(Image.fromarray(RGB), "jpeg"),
  encoded(Image.fromarray(RGB), "tiff", compression="tiff_lzw"),
  encoded(Image.fromarray(np.uint16(GREY) * 200), "tiff"),
  encoded(Image.fromarray(GREY), "gif"),
  encoded(Image.fromarray(RGB).quantize(8), "png"),
]


@pytest.mark.fuzz
@given(st.one_of(st.binary(max_size=200), st.builds(mutated, st.integers(0, 1 << 40), st.sampled_from(VALID))))
def test_any_bytes_give_a_picture_or_one_line(tmp_path_factory, content):
  file = Path(tmp_path_factory.getbasetemp()) / "fuzzed.png"
  file.write_bytes(content)
  try:
    decoded = pictures.read(file, pictures.survey([file]), 4)
  except UserError as error:
    assert str(error).startswith(str(file))  # noqa: PT017
    assert len(str(error).splitlines()) == 1  # noqa: PT017
  else:
    assert decoded.pixels.shape[:2] == (4, 4)
    assert np.isfinite(decoded.pixels).all()
