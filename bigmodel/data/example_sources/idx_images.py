"""Images in Yann LeCun's IDX format, as of MNIST, in the folder `data.path`; by default Debian's Fashion-MNIST."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import images
from bigmodel.data.images import Block
from bigmodel.data.prepared import chunks
from bigmodel.data.sources import Arrays, Source
from bigmodel.readers.packed import open_bytes

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
SPLITS = ("train", "t10k")
# The types of the format by their number in the header.
TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
LARGEST = 1 << 28  # values of an image


def read(data: Config) -> Arrays:
  """The images of both splits, and their labels."""
  folder = Path(data.path or FASHION_MNIST).expanduser()
  require(os.path.isdir(folder), f"config.data.path: no folder {str(folder)!r} with IDX files")
  files = {split: [_find(folder, split, kind) for kind in ("images", "labels")] for split in SPLITS}
  key: list[object] = ["idx_images", [[images.file_sha256(file) for file in files[split]] for split in SPLITS]]

  def blocks() -> Iterator[Block]:
    shapes = [_header(files[split][0])[1] for split in SPLITS]
    both = f"{list(shapes[0])} and of {list(shapes[1])}"
    require(shapes[0][1:] == shapes[1][1:], f"config.data.path: images of {both} in {folder}")
    for split, shape in zip(SPLITS, shapes, strict=True):
      labels = np.concatenate(list(_arrays(files[split][1])))
      require(
        shape[0] == len(labels), f"config.data.path: {shape[0]} {split} images and {len(labels)} labels in {folder}"
      )
      first = 0
      for pixels in _arrays(files[split][0]):
        with_channels = pixels[..., None] if pixels.ndim == 3 else pixels
        yield Block(with_channels, labels[first : first + len(pixels)], split == "t10k")
        first += len(pixels)

  return images.prepare(images.ImageFiles(key, blocks, has_split=True))


def _find(folder: Path, split: str, kind: str) -> Path:
  files = sorted(path for path in folder.glob(f"{split}-{kind}*") if path.is_file())
  require(bool(files), f"config.data.path: no {split}-{kind}* in {folder}")
  return files[0]


def _header(path: Path) -> tuple[np.dtype, tuple[int, ...]]:
  """Type and shape of the array of an IDX file: images [images, H, W] or [images, H, W, C], or labels [images]."""
  with open_bytes(path) as file:
    start = file.read(4)
    kind = TYPES.get(start[2]) if len(start) == 4 and start[:2] == b"\0\0" else None
    sizes = file.read(4 * start[3]) if kind is not None else b""
  require(kind is not None and len(sizes) == 4 * start[3] > 0, f"config.data.path: {path} is not an IDX file")
  shape = tuple(np.frombuffer(sizes, ">u4").astype(int).tolist())
  dimensions = (1,) if "-labels" in path.name else (3, 4)
  require(
    len(shape) in dimensions and math.prod(shape) > 0 and math.prod(shape[1:]) <= LARGEST,
    f"config.data.path: {path} has the shape {list(shape)}; images have 3 or 4 dimensions and labels 1, none of them 0",
  )
  return np.dtype(kind), shape


def _arrays(path: Path) -> Iterator[np.ndarray]:
  """The array of a file, plain or packed, in blocks of up to a few thousand rows."""
  kind, shape = _header(path)
  header, row_bytes = 4 + 4 * len(shape), kind.itemsize * math.prod(shape[1:])
  with open_bytes(path) as file:
    size = len(file.read(header))
    for rows in chunks(shape[0], math.prod(shape[1:])):
      raw = file.read((rows.stop - rows.start) * row_bytes)
      size += len(raw)
      if len(raw) < (rows.stop - rows.start) * row_bytes:
        break
      array = np.frombuffer(raw, kind).reshape(-1, *shape[1:])
      require(bool(np.isfinite(array).all()), f"config.data.path: {path} has values that are not finite")
      yield array.astype(array.dtype.newbyteorder("="))
    while more := file.read(1 << 20):
      size += len(more)
  expected = header + shape[0] * row_bytes
  require(
    size == expected, f"config.data.path: {path} has {size:,} bytes, its header says {expected:,}: truncated or damaged"
  )


SOURCE = Source(read, always_splits=True)
