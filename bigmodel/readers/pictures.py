"""Reads pictures as they are displayed: upright, opaque, grey or RGB, with values from 0 to 255.

Files are recognised by their content. Of several pictures in a file, such as the frames of an animation, the first is
read. A file that cannot be read to its end raises `UserError`.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from bigmodel.errors import UserError

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

T = TypeVar("T")
SUFFIXES = (
  *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".avif"),
  *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Pillow recognises more formats, some of which run other programs, such as Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "AVIF", "PPM", "JPEG2000")
LARGEST = 178_956_970  # pixels of a picture; Pillow refuses more as well
BACKGROUND = (255, 255, 255, 255)  # of transparent pictures
GREY_MODES = ("1", "L", "LA", "La")
ORIENTATION = 0x0112  # the tag of EXIF
WHITE_IS_ZERO = (262, 0)  # a tag of TIFF and its value
TURNS = {  # EXIF's orientation: the names of Pillow's transpositions
  2: "FLIP_LEFT_RIGHT",
  3: "ROTATE_180",
  4: "FLIP_TOP_BOTTOM",
  5: "TRANSPOSE",
  6: "ROTATE_270",
  7: "TRANSVERSE",
  8: "ROTATE_90",
}
REMARKS = {"CMYK": "converted from CMYK without their colour profile", "LAB": "converted from LAB"}


@dataclasses.dataclass(frozen=True)
class Survey:
  """What pictures that are used together have in common, from a first look at all of them."""

  grey: bool  # all of them
  factor: float = 0  # by which values of more than 8 bits are multiplied; 0: all have 8 bits
  remark: str = ""  # about the factor


class Decoded(NamedTuple):
  """The pixels [H, W, C] of a picture, float32 where `Survey` has a factor, else uint8; and what was assumed."""

  pixels: np.ndarray
  remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Depth:
  """The values of a picture of more than 8 bits per channel."""

  file: Path
  is_float: bool
  low: float
  high: float


def survey(files: Sequence[Path], size: int = 0) -> Survey:
  """Looks at all the pictures that `read` will read with this size.

  Those of more than 8 bits are decoded, because their range decides their scale.
  """
  grey, depths = True, []
  for file in files:
    is_grey, depth = use(file, lambda image, file=file: _look(image, file), size)
    grey = grey and is_grey
    if depth is not None:
      depths.append(depth)
  return _with_factor(grey, depths) if depths else Survey(grey)


def _look(image: "Picture", file: Path) -> tuple[bool, _Depth | None]:
  if not _is_deep(image):
    return image.mode in GREY_MODES, None
  values = _deep_values(image, file)
  return True, _Depth(file, image.mode == "F", float(values.min()), float(values.max()))


def _with_factor(grey: bool, depths: Sequence[_Depth]) -> Survey:
  """The factor that brings all values to 0 to 255. Raises `UserError` for ranges that do not suggest one."""
  lowest, highest = min(depths, key=lambda depth: depth.low), max(depths, key=lambda depth: depth.high)
  is_float = depths[0].is_float
  other = next((depth for depth in depths if depth.is_float != is_float), None)
  if other is not None:
    raise UserError(f"{depths[0].file} and {other.file}: whole numbers and floats of unrelated scales; convert them")
  limit = 255 if is_float else 65535
  if lowest.low < 0 or highest.high > limit:
    file, value = (lowest.file, lowest.low) if lowest.low < 0 else (highest.file, highest.high)
    raise UserError(
      f"{file} has the value {value:g}, but pixels are whole numbers from 0 to 65535 or floats from 0 to 1 or 255;"
      " rescale the pictures, or use data.name=arrays for values that are no pixels"
    )
  if is_float:
    top = 1 if highest.high <= 1 else 255
    return Survey(grey, 255 / top, f"floats from 0 to {top} stand for 0 to 255")
  bits = next(bits for bits in (8, 10, 12, 14, 16) if highest.high < 1 << bits)
  top = (1 << bits) - 1
  seen = f" (no picture has a value above {highest.high:.0f}, so they are taken as {bits}-bit)" if bits < 16 else ""
  return Survey(grey, 255 / top, f"16-bit values from 0 to {top} are scaled to 0 to 255{seen}")


def read(file: Path, common: Survey, size: int = 0) -> Decoded:
  """A picture; where a `size` is given, its central square scaled to that many pixels per side."""
  return use(file, lambda image: _decoded(image, file, common, size), reduced_to=size)


def use(file: Path, function: "Callable[[Picture], T]", reduced_to: int = 0) -> T:
  """What `function` returns for the opened picture. All errors of Pillow are `UserError`s that name the file.

  A JPEG file that is too large is decoded at a fraction of its size, if that is still at least twice `reduced_to`.
  """
  try:
    from PIL import Image
  except ImportError as error:
    raise UserError("config.data.name: Pillow is not installed; pip install 'bigmodel[images]'") from error

  limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # see `_require_moderate`, which names the file
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      Image.init()
      formats = [name for name in FORMATS if name in Image.OPEN]  # a build of Pillow may lack some of them
      with Image.open(file, formats=formats) as image:
        _require_moderate(image, file, reduced_to)
        return function(image)
  except UserError:
    raise
  except Exception as error:  # decoders raise errors of many classes for damaged files
    raise UserError(f"{file} cannot be read: {_reason(file, error)}") from error
  finally:
    Image.MAX_IMAGE_PIXELS = limit


def _require_moderate(image: "Picture", file: Path, reduced_to: int) -> None:
  width, height = image.size
  if width * height > LARGEST and reduced_to and not image.info.get("progressive"):
    image.draft(image.mode, (2 * reduced_to, 2 * reduced_to))
  if image.width * image.height > LARGEST:
    raise UserError(f"{file} has {width:,} x {height:,} pixels, more than {LARGEST:,}; scale it down or remove it")


def _reason(file: Path, error: Exception) -> str:
  """Why a file cannot be read, in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  try:
    with open(file, "rb") as opened:
      begin = opened.read(48)
  except OSError as unreadable:
    return str(unreadable.strerror)
  if not begin:
    return "it is empty"
  if begin.startswith(b"version https://git-lfs"):
    return "it is a Git LFS pointer; git lfs pull fetches the picture"
  if begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
    return "it is a web page; the download failed"
  if begin[4:8] == b"ftyp" and begin[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
    return "it is a HEIC picture; convert it to JPEG"
  from PIL import UnidentifiedImageError

  if isinstance(error, UnidentifiedImageError):
    return f"cannot identify a picture in it (it begins with {begin[:16]!r})"
  first = (str(error).strip().splitlines() or [""])[0][:120]
  known = first and isinstance(error, OSError | SyntaxError | ValueError)
  return first if known else f"its data are damaged {f'({first})' if first else ''}".rstrip()


def _is_deep(image: "Picture") -> bool:
  return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _deep_values(image: "Picture", file: Path) -> np.ndarray:
  """The values of a picture of more than 8 bits, float32[H, W], upright."""
  is_negative = getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]
  image.load()
  values = np.asarray(_upright(image)).astype(np.float32)
  if not np.isfinite(values).all():
    raise UserError(f"{file} has values that are not finite")
  return 65535 - values if is_negative and image.mode != "F" else values


def _decoded(image: "Picture", file: Path, common: Survey, size: int) -> Decoded:
  from PIL import Image

  remarks = []
  tag = getattr(image, "tag_v2", {}).get(ORIENTATION, 1)  # Pillow turns pictures in TIFF files itself, while it loads
  if _is_deep(image):
    values = _deep_values(image, file) * np.float32(common.factor)
    remarks.append(common.remark)
    upright = Image.fromarray(values)
  else:
    if ";16" in str(getattr(image, "tile", "")):
      remarks.append("reduced from 16 bits per channel to 8")
    image.load()
    upright = _upright(image)
  if tag in TURNS or _orientation(image) in TURNS:
    remarks.append("turned upright by their EXIF orientation")
  remarks += [REMARKS[image.mode]] if image.mode in REMARKS else []
  if not _is_deep(image):
    upright, remark = _opaque(upright, common.grey)
    remarks += [remark] if remark else []
  if getattr(image, "is_animated", False):
    remarks.append("the first of several in their file")
  pixels = np.asarray(_cut(upright, size) if size else upright)
  pixels = pixels.reshape(*pixels.shape[:2], -1)
  if common.factor:
    pixels = np.clip(pixels.astype(np.float32), 0, 255)
    pixels = pixels if common.grey else np.broadcast_to(pixels, (*pixels.shape[:2], 3))
  return Decoded(pixels, tuple(remarks))


def _orientation(image: "Picture") -> int:
  """EXIF's orientation of a loaded picture; 1, which is upright, without EXIF or where it is damaged."""
  try:
    found = image.getexif().get(ORIENTATION, 1)
  except Exception:
    return 1
  return found if isinstance(found, int) else 1


def _upright(image: "Picture") -> "Picture":
  from PIL import Image

  turn = TURNS.get(_orientation(image))
  return image if turn is None else image.transpose(Image.Transpose[turn])


def _opaque(image: "Picture", grey: bool) -> "tuple[Picture, str]":
  """The picture as grey or RGB, and a remark if any of it was transparent."""
  from PIL import Image

  if image.has_transparency_data:
    with_alpha = image.convert("RGBA")
    least, greatest = with_alpha.getchannel("A").getextrema()
    if least != 255:
      on_background = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), with_alpha)
      remark = "transparent in part and put on white" if greatest else "transparent everywhere and therefore white"
      return on_background.convert("L" if grey else "RGB"), remark
  return image.convert("L" if grey else "RGB"), ""


def _cut(image: "Picture", size: int) -> "Picture":
  """The central square of a picture, scaled."""
  from PIL import Image

  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  return image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def is_picture(path: str | os.PathLike[str]) -> bool:
  """Whether the name of a file ends like that of a picture, in any case."""
  return Path(path).suffix.lower() in SUFFIXES
