"""Images with labels, decoded once into an array in the cache.

The name of the array is a hash of the contents of all files, so that changed files are decoded again.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from bigmodel.data.prepared import GrowingArray, new_folder, open_array, row_identity
from bigmodel.data.sources import Arrays
from bigmodel.errors import UserError
from bigmodel.files import cache_dir, only_one, read_json, sha256_file, sha256_text, write_json

TRAIN, HELD_OUT = ("train", "training"), ("test", "validation", "val")  # the names that splits may have
FORMAT = 2  # of prepared images, and of how files become pixels; images of other formats are ignored

DARK = 64  # pictures without any lighter pixel are reported


class Block(NamedTuple):
  """Consecutive images: pixels [images, H, W, C], class numbers [images], and whether the data hold them out.

  `remarks` say what was assumed to read them, or how they were changed.
  """

  pixels: np.ndarray
  labels: np.ndarray
  heldout: bool
  remarks: tuple[str, ...] = ()


class Card(msgspec.Struct, frozen=True):
  """What is stored beside the decoded images: the hash of their pixels, and what is noted about them."""

  sha256: str
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Images before they are decoded. `key` has everything that the blocks depend on, such as the files' hashes."""

  key: list[object]
  blocks: Callable[[], Iterable[Block]]
  has_split: bool  # whether the data hold out some of the images
  classes: tuple[str, ...] = ()  # the names of the classes, where they have names


def file_sha256(file: Path) -> str:
  """The hash of the content of a file. Raises `UserError` where it cannot be read."""
  try:
    return sha256_file(file)
  except OSError as error:
    raise UserError(f"config.data.path: {file} cannot be read: {error.strerror}") from error


def prepare(files: ImageFiles) -> Arrays:
  """The decoded images, from the cache or after writing them there; one image is in memory at a time."""
  name = sha256_text(json.dumps([FORMAT, *files.key]))[:16]
  folder = cache_dir() / "images" / name
  with only_one(f"images-{name}"):
    if not folder.exists():
      with new_folder(folder) as temporary:
        _write(temporary, files.blocks())
  labels, identities, heldout = (open_array(folder / f"{part}.npy") for part in ("labels", "identities", "own"))
  card = msgspec.convert(read_json(folder / "card.json"), Card)
  return Arrays(
    inputs=open_array(folder / "pixels.npy"),
    targets=np.array(labels),
    heldout=np.array(heldout) if files.has_split else None,
    classes=files.classes,
    identities=identities,
    inputs_sha256=card.sha256,
    notes=card.notes,
  )


def _write(folder: Path, blocks: Iterable[Block]) -> None:
  digest, identities, labels, heldout = hashlib.sha256(), [], [], []
  remarks, seen = Counter[str](), Seen()
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
      remarks.update({remark: len(block.pixels) for remark in block.remarks})
      seen.add(block.pixels)
  np.save(folder / "labels.npy", np.concatenate(labels))
  np.save(folder / "identities.npy", np.array(identities, np.uint64))
  np.save(folder / "own.npy", np.array(heldout))
  notes = [f"{count:,} of {len(heldout):,} pictures: {remark}" for remark, count in sorted(remarks.items())]
  write_json(folder / "card.json", msgspec.to_builtins(Card(digest.hexdigest(), (*notes, *seen.notes()))))


class Seen:
  """What is checked of all pixels: channels that are constant or equal, and pictures that are almost black."""

  def __init__(self) -> None:
    self._first: np.ndarray | None = None
    self._constant = np.zeros(0, bool)  # by channel
    self._equal, self._greatest = True, 0.0

  def add(self, pixels: np.ndarray) -> None:
    """Looks at pixels [images, H, W, C]."""
    if self._first is None:
      self._first = np.array(pixels[0, 0, 0])
      self._constant, self._equal = np.ones(len(self._first), bool), len(self._first) > 1
    for channel in np.flatnonzero(self._constant):
      self._constant[channel] = bool((pixels[..., channel] == self._first[channel]).all())
    self._equal = self._equal and bool((pixels == pixels[..., :1]).all())
    self._greatest = max(self._greatest, float(pixels.max()) if pixels.dtype == np.uint8 else DARK)

  def notes(self) -> list[str]:
    """What should be known of the pixels."""
    constant = [int(channel) for channel in np.flatnonzero(self._constant)]
    first = self._first if self._first is not None else np.zeros(0)
    if len(constant) == len(first):
      return [f"all pixels of all pictures are {' '.join(f'{value:g}' for value in first)}"]
    notes = [f"channel {channel} of all pixels of all pictures is {first[channel]:g}" for channel in constant]
    if self._equal:
      notes.append(f"the {len(first)} channels of every pixel are equal: the pictures are grey but not stored as grey")
    if self._greatest < DARK:
      notes.append(f"no pixel is above {self._greatest:g} of 255; are these numbers of classes, or fewer than 8 bits?")
    return notes
