"""Folders of pictures, one for each class, at `data.path`.

Where the folders at the top are called train and test (or validation, or val), they are the split, and the folders of
the classes are in them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import images
from bigmodel.data.images import HELD_OUT, TRAIN, Block
from bigmodel.data.sources import Arrays, Source
from bigmodel.errors import UserError
from bigmodel.files import sha256_file

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
T = TypeVar("T")


def read(data: Config) -> Arrays:
  """The pictures as uint8[images, H, W, C]: grey if all of them are grey."""
  root, size = Path(data.path), data.image_size
  require(root.is_dir(), f"config.data.path: no folder {str(root)!r}")
  parts = _parts(root)
  pictures = [
    (file, heldout, file.relative_to(part).parts[0])
    for part, heldout in parts
    for file in sorted(part.glob("*/**/*"))
    if _is_picture(file)
  ]
  require(bool(pictures), f"config.data.path: no picture ({', '.join(PICTURES)}) in a folder of its class in {root}")
  files, heldout, names = zip(*pictures, strict=True)
  classes, labels = np.unique(names, return_inverse=True)
  key: list[object] = ["image_folder", size]
  key += [[held, str(file.relative_to(root)), sha256_file(file)] for file, held, _ in pictures]

  def blocks() -> Iterator[Block]:
    return _decoded(files, heldout, labels, size)

  return images.prepare(images.ImageFiles(key, blocks, len(parts) > 1, tuple(classes.tolist())))


def _parts(root: Path) -> list[tuple[Path, bool]]:
  """The folders that hold the folders of the classes, and whether they are held out."""
  tops = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))}
  train, heldout = ([tops[n] for n in names if n in tops] for names in (TRAIN, HELD_OUT))
  is_split = bool(train and heldout) and len(train) + len(heldout) == len(tops)
  require(
    is_split or not train,
    f"config.data.path: {root} has {train[0].name if train else ''} beside {', '.join(sorted(tops))}: train and one of"
    f" {', '.join(HELD_OUT)} are a split, and then nothing else may be there",
  )
  return [(path, False) for path in train] + [(path, True) for path in heldout] if is_split else [(root, False)]


def _is_picture(path: Path) -> bool:
  return path.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts[-3:])


def _decoded(files: Sequence[Path], heldout: Sequence[bool], labels: np.ndarray, size: int) -> Iterator[Block]:
  """The pictures one by one; cut to a square and scaled where a size is given."""
  try:
    from PIL import Image
  except ImportError as error:
    raise UserError("config.data.name: Pillow is not installed; pip install 'bigmodel[images]'") from error

  def load(image: "Picture") -> np.ndarray:
    image = image.convert("L" if grey else "RGB")
    if size:
      side = min(image.size)
      left, top = (image.width - side) // 2, (image.height - side) // 2
      image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(image)

  grey = all(_opened(file, lambda image: image.mode in ("1", "L")) for file in files)
  first: tuple[int, ...] = ()
  for file, held, label in zip(files, heldout, labels, strict=True):
    pixels = _opened(file, load)
    first = first or pixels.shape
    require(
      pixels.shape == first,
      f"config.data.image_size: {file} has {pixels.shape[1]} x {pixels.shape[0]} pixels and {files[0]}"
      f" {first[1]} x {first[0]}; give a size",
    )
    yield Block(pixels.reshape(1, *first[:2], -1), np.array([label]), held)


def _opened(file: Path, use: "Callable[[Picture], T]") -> T:
  from PIL import Image

  try:
    with Image.open(file) as image:
      return use(image)
  except (OSError, SyntaxError, ValueError) as error:
    raise UserError(f"config.data.path: {file} cannot be read: {str(error).splitlines()[0]}") from error


SOURCE = Source(read, needs_path=True, scales_images=True)
