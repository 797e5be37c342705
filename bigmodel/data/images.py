"""Images with labels: IDX files (MNIST and its kin), folders of pictures, TFDS sets that are prepared.

A folder has a folder of pictures for each class. Where the folders at its top are called train and
test (or validation, or val), they are the split, and the classes lie in them.
"""

import dataclasses
import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import builders
from bigmodel.files import UserError

NAMES = ("idx_images", "image_folder")  # and tfds/NAME
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TRAIN, HELD_OUT = ("train", "training"), ("test", "validation", "val")
IDX_TYPES = {
  8: np.uint8, 9: np.int8, 11: np.dtype(">i2"), 12: np.dtype(">i4"), 13: np.dtype(">f4"), 14: np.dtype(">f8"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Images:
  """Pixels [images, H, W, C] and class numbers; `own` marks those that the data hold out themselves."""

  images: np.ndarray
  labels: np.ndarray
  own: np.ndarray | None
  classes: tuple[str, ...] = ()


def read(data: Config) -> Images:
  """The images of `config.data`; an error names the file."""
  if data.name == "idx_images":
    return _idx_images(Path(data.path or FASHION_MNIST))
  return _folder(Path(data.path), data.image_size) if data.name == "image_folder" else _tfds(data)


# ---- folders


def _folder(root: Path, size: int) -> Images:
  require(root.is_dir(), f"config.data.path: no folder {str(root)!r}")
  tops = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))}
  train, heldout = ([tops[n] for n in names if n in tops] for names in (TRAIN, HELD_OUT))
  given = bool(train and heldout) and len(train) + len(heldout) == len(tops)
  require(
    given or not train,
    f"config.data.path: {root} has {train[0].name if train else ''} beside {', '.join(sorted(tops))}: train and one of"
    f" {', '.join(HELD_OUT)} are a split, and then nothing else lies there",
  )
  parts = [(path, False) for path in train] + [(path, True) for path in heldout] if given else [(root, False)]
  found = [
    (file, own, file.relative_to(path).parts[0])
    for path, own in parts
    for file in sorted(path.glob("*/**/*"))
    if _is_picture(file)
  ]
  require(bool(found), f"config.data.path: no picture ({', '.join(PICTURES)}) in a folder of its class in {root}")
  files, own, names = zip(*found, strict=True)
  classes, labels = np.unique(names, return_inverse=True)
  return Images(_stack(files, size), labels, np.array(own) if given else None, tuple(classes.tolist()))


def _is_picture(path: Path) -> bool:
  return path.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts[-3:])


def _stack(files: Sequence[Path], size: int) -> np.ndarray:
  """uint8[files, H, W, C]: grey if all of them are; cut to a square and scaled where a size is given."""
  try:
    from PIL import Image
  except ImportError as error:
    raise UserError("config.data.name: Pillow is not here; pip install 'bigmodel[images]'") from error
  pixels: np.ndarray | None = None
  grey = all(_opened(Image, file, lambda image: image.mode in ("1", "L")) for file in files)

  def load(image: Any) -> np.ndarray:
    image = image.convert("L" if grey else "RGB")
    if size:
      side = min(image.size)
      left, top = (image.width - side) // 2, (image.height - side) // 2
      image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(image)

  for i, file in enumerate(files):
    own = _opened(Image, file, load)
    if pixels is None:
      pixels = np.empty((len(files), *own.shape), np.uint8)
    require(
      own.shape == pixels.shape[1:],
      f"config.data.image_size: {file} has {own.shape[1]} x {own.shape[0]} pixels and {files[0]}"
      f" {pixels.shape[2]} x {pixels.shape[1]}; give a size",
    )
    pixels[i] = own
  assert pixels is not None
  return pixels[..., None] if pixels.ndim == 3 else pixels


def _opened(library: Any, file: Path, use: Any) -> Any:
  try:
    with library.open(file) as image:
      return use(image)
  except (OSError, SyntaxError, ValueError) as error:
    raise UserError(f"config.data.path: {file} cannot be read: {str(error).splitlines()[0]}") from error


# ---- TFDS


def _tfds(data: Config) -> Images:
  """A TFDS set of images and labels that the user prepared as array_record."""
  name = data.name.removeprefix("tfds/")
  builder = builders.prepared(name, data.path, f"one of {', '.join(NAMES)}")
  missing = {"image", "label"} - set(builder.info.features or {})
  require(not missing, f"config.data.name: TFDS dataset {name!r} has no feature {' or '.join(sorted(missing))}")
  require("train" in builder.info.splits, f"config.data.name: TFDS dataset {name!r} has no split 'train'")
  heldout = next((split for split in HELD_OUT if split in builder.info.splits), "")
  parts = [(row, split == heldout) for split in ("train", heldout) if split for row in _rows(name, builder, split)]
  shapes = {row["image"].shape for row, _ in parts}
  require(len(shapes) == 1, f"config.data.name: the images of {name!r} differ in shape: {sorted(shapes)[:3]}")
  own = np.array([held for _, held in parts]) if heldout else None
  labels = np.array([int(row["label"]) for row, _ in parts])
  names = getattr(builder.info.features["label"], "names", None) or ()
  return Images(np.stack([row["image"] for row, _ in parts]), labels, own, tuple(names))


def _rows(name: str, builder: Any, split: str) -> Any:
  try:
    source = builder.as_data_source(split=split)
    yield from (source[i] for i in range(len(source)))
  except ImportError as error:
    raise UserError(f"config.data.name: {name!r} needs Pillow; pip install 'bigmodel[images]'") from error


# ---- IDX


def _idx_images(folder: Path) -> Images:
  parts = [_idx_split(folder, split) for split in ("train", "t10k")]
  shapes = [images.shape[1:] for images, _ in parts]
  require(shapes[0] == shapes[1], f"config.data.path: images of {shapes[0]} and of {shapes[1]} in {folder}")
  own = np.repeat([False, True], [len(labels) for _, labels in parts])
  return Images(*(np.concatenate([part[i] for part in parts]) for i in (0, 1)), own=own)


def _idx_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  require(folder.is_dir(), f"config.data.path: no folder {str(folder)!r} with IDX files")
  images, labels = (_idx(_find(folder, split, kind)) for kind in ("images", "labels"))
  require(
    len(images) == len(labels), f"config.data.path: {len(images)} {split} images and {len(labels)} labels in {folder}"
  )
  return (images[..., None] if images.ndim == 3 else images), labels


def _find(folder: Path, split: str, kind: str) -> Path:
  found = sorted(folder.glob(f"{split}-{kind}*"))
  require(bool(found), f"config.data.path: no {split}-{kind}* in {folder}")
  return found[0]


def _idx(path: Path) -> np.ndarray:
  """An array of Yann LeCun's IDX format, plain or .gz."""
  try:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
      raw = file.read()
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(f"config.data.path: {path} cannot be read: {error}") from error
  kind = IDX_TYPES.get(raw[2]) if len(raw) >= 4 and raw[:2] == b"\0\0" else None
  require(kind is not None and len(raw) >= 4 + 4 * raw[3], f"config.data.path: {path} is no IDX file")
  shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).astype(int).tolist())
  wanted = 4 + 4 * raw[3] + math.prod(shape) * np.dtype(kind).itemsize
  require(len(raw) == wanted, f"config.data.path: {path} has {len(raw)} bytes, its header says {wanted}: truncated?")
  array = np.frombuffer(raw, kind, offset=4 + 4 * raw[3]).reshape(shape)
  return array.astype(array.dtype.newbyteorder("="))
