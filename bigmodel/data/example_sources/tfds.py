"""TFDS datasets of images and labels that are prepared as array_record; `data.name` is tfds/NAME."""

import os
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import tensorflow_datasets as tfds

from bigmodel.config import Config, require
from bigmodel.data import builders, images
from bigmodel.data.images import HELD_OUT, Block
from bigmodel.data.sources import Arrays, Source
from bigmodel.errors import UserError


def read(data: Config) -> Arrays:
  """The features `image` and `label` of the split train, and of the split test or validation if there is one."""
  name = data.name.removeprefix("tfds/")
  builder = builders.prepared(name, os.path.expanduser(data.path), "a source of examples, such as image_folder,")
  features = cast(Mapping[str, object], builder.info.features or {})
  missing = {"image", "label"} - set(features)
  require(not missing, f"config.data.name: TFDS dataset {name!r} has no feature {' or '.join(sorted(missing))}")
  require("train" in builder.info.splits, f"config.data.name: TFDS dataset {name!r} has no split 'train'")
  heldout = next((split for split in HELD_OUT if split in builder.info.splits), "")
  splits = [split for split in ("train", heldout) if split]
  names = getattr(features["label"], "names", None) or ()
  files = [builders.fingerprint(path) for split in splits for path in builder.info.splits[split].filepaths]

  def blocks() -> Iterator[Block]:
    shape: tuple[int, ...] = ()
    for split in splits:
      for image, label in _rows(name, builder, split):
        shape = shape or image.shape
        same = image.shape == shape
        require(same, f"config.data.name: the images of {name!r} differ in shape: {shape} and {image.shape}")
        yield Block(image[None], np.array([label]), split == heldout)

  key: list[object] = ["tfds", builder.info.full_name, splits, files]
  return images.prepare(images.ImageFiles(key, blocks, bool(heldout), tuple(names)))


def _rows(name: str, builder: tfds.core.DatasetBuilder, split: str) -> Iterator[tuple[np.ndarray, int]]:
  try:
    rows = builders.rows(builder, split)
    for i in range(len(rows)):
      yield np.asarray(rows[i]["image"]), int(np.asarray(rows[i]["label"]))
  except ImportError as error:
    raise UserError(f"config.data.name: {name!r} needs Pillow; pip install 'bigmodel[images]'") from error


SOURCE = Source(read)
