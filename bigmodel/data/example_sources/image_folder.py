"""Folders of pictures, one for each class, at `data.path`.

Where the folders at the top are called train and test (or validation, val, ...), they are the split, and the folders of
the classes are in them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import class_folders, images
from bigmodel.data.images import Block
from bigmodel.data.sources import Arrays, Source
from bigmodel.readers import pictures


def read(data: Config) -> Arrays:
  """The pictures as [images, H, W, C] with values from 0 to 255: grey if all of them are grey.

  The type is uint8, or float32 if a picture has more than 8 bits per channel.
  """
  root, size = Path(data.path).expanduser(), data.image_size
  contents = class_folders.find(root)
  files = [picture.file for picture in contents.found]
  classes, labels = np.unique([picture.label for picture in contents.found], return_inverse=True)
  key: list[object] = ["image_folder", size]
  key += [
    [picture.heldout, str(picture.file.relative_to(root)), images.file_sha256(picture.file)]
    for picture in contents.found
  ]
  is_heldout = [picture.heldout for picture in contents.found]
  notes = contents.notes
  if contents.passed_over.keys() - {"hidden"}:
    notes = (*notes, f"files that are not read: {class_folders.written(contents.passed_over)}")

  def blocks() -> Iterator[Block]:
    return _decoded(files, is_heldout, labels, size)

  arrays = images.prepare(images.ImageFiles(key, blocks, contents.has_split, tuple(classes.tolist())))
  return dataclasses.replace(arrays, notes=(*notes, *arrays.notes), passed_over=contents.passed_over)


def _decoded(files: Sequence[Path], heldout: Sequence[bool], labels: np.ndarray, size: int) -> Iterator[Block]:
  """The pictures one by one; cut to a square and scaled where a size is given."""
  common = pictures.survey(files, size)
  first: tuple[int, ...] = ()
  for file, held, label in zip(files, heldout, labels, strict=True):
    pixels, remarks = pictures.read(file, common, size)
    first = first or pixels.shape
    require(
      pixels.shape == first,
      f"config.data.image_size: {file} has {pixels.shape[1]} x {pixels.shape[0]} pixels and {files[0]}"
      f" {first[1]} x {first[0]}; give a size",
    )
    yield Block(pixels[None], np.array([label]), held, remarks)


SOURCE = Source(read, needs_path=True, scales_images=True)
