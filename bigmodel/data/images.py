"""Images with labels, decoded once into an array in the cache.

The name of the array is a hash of the contents of all files, so that changed files are decoded again.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigmodel.data.prepared import GrowingArray, new_folder, open_array, row_identity
from bigmodel.data.sources import Arrays
from bigmodel.files import cache_dir, only_one, read_json, sha256_text, write_json

TRAIN, HELD_OUT = ("train", "training"), ("test", "validation", "val")  # the names that splits may have
FORMAT = 1  # of prepared images, and of how files become pixels; images of other formats are ignored


class Block(NamedTuple):
  """Consecutive images: pixels [images, H, W, C], class numbers [images], and whether the data hold them out."""

  pixels: np.ndarray
  labels: np.ndarray
  heldout: bool


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Images before they are decoded. `key` has everything that the blocks depend on, such as the files' hashes."""

  key: list[object]
  blocks: Callable[[], Iterable[Block]]
  has_split: bool  # whether the data hold out some of the images
  classes: tuple[str, ...] = ()  # the names of the classes, where they have names


def prepare(files: ImageFiles) -> Arrays:
  """The decoded images, from the cache or after writing them there; one image is in memory at a time."""
  name = sha256_text(json.dumps([FORMAT, *files.key]))[:16]
  folder = cache_dir() / "images" / name
  with only_one(f"images-{name}"):
    if not folder.exists():
      with new_folder(folder) as temporary:
        _write(temporary, files.blocks())
  labels, identities, heldout = (open_array(folder / f"{part}.npy") for part in ("labels", "identities", "own"))
  return Arrays(
    inputs=open_array(folder / "pixels.npy"),
    targets=np.array(labels),
    heldout=np.array(heldout) if files.has_split else None,
    classes=files.classes,
    identities=identities,
    inputs_sha256=read_json(folder / "card.json")["sha256"],
  )


def _write(folder: Path, blocks: Iterable[Block]) -> None:
  digest, identities, labels, heldout = hashlib.sha256(), [], [], []
  with contextlib.ExitStack() as stack:
    file: GrowingArray | None = None
    for block in blocks:
      if file is None:
        digest.update(f"{block.pixels.dtype} {block.pixels.shape[1:]}".encode())
        file = GrowingArray(folder / "pixels.npy", block.pixels.dtype, block.pixels.shape[1:])
        stack.enter_context(file)
      file.append(block.pixels)
      digest.update(np.ascontiguousarray(block.pixels).data)
      identities += map(row_identity, block.pixels)
      labels.append(block.labels)
      heldout += [block.heldout] * len(block.pixels)
  np.save(folder / "labels.npy", np.concatenate(labels))
  np.save(folder / "identities.npy", np.array(identities, np.uint64))
  np.save(folder / "own.npy", np.array(heldout))
  write_json(folder / "card.json", {"sha256": digest.hexdigest()})
