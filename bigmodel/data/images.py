"""Images with labels: IDX files (MNIST and its kin), folders of pictures, TFDS sets that are prepared.

A folder has a folder of pictures for each class. Where the folders at its top are called train and
test (or validation, or val), they are the split, and the classes lie in them.

The pixels are decoded once, one image after another, into an array in the cache, which is read from there without
loading it: its name is made of the contents of all files, so that changed files are decoded again.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import builders
from bigmodel.data.prepared import GrowingArray, chunks, new_folder, open_array
from bigmodel.errors import UserError
from bigmodel.files import cache_dir, only_one, read_json, sha256_file, sha256_text, write_json

NAMES = ("idx_images", "image_folder")  # and tfds/NAME
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TRAIN, HELD_OUT = ("train", "training"), ("test", "validation", "val")
IDX_TYPES = {
  8: np.uint8, 9: np.int8, 11: np.dtype(">i2"), 12: np.dtype(">i4"), 13: np.dtype(">f4"), 14: np.dtype(">f8"),
}  # fmt: skip


FORMAT = 1  # of prepared images, and of how files become pixels; images of other formats are not looked at

# Pixels [images, H, W, C] of images that follow one another, their class numbers, and whether the data hold them out.
Block = tuple[np.ndarray, np.ndarray, bool]


@dataclasses.dataclass(frozen=True)
class Images:
  """Pixels [images, H, W, C] on disk and class numbers; `own` marks those that the data hold out themselves.

  `identities` are hashes of the pixels of each image: copies have the same.
  """

  images: np.ndarray
  labels: np.ndarray
  identities: np.ndarray
  own: np.ndarray | None
  sha256: str  # of all pixels
  classes: tuple[str, ...] = ()


def read(data: Config) -> Images:
  """The images of `config.data`; an error names the file."""
  if data.name == "idx_images":
    return _idx_images(Path(data.path or FASHION_MNIST))
  return _folder(Path(data.path), data.image_size) if data.name == "image_folder" else _tfds(data)


def identity(image: np.ndarray) -> int:
  """A hash of the values of one image, of 64 bits."""
  return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest(), "little")


def _prepared(
  key: list[object], blocks: Callable[[], Iterable[Block]], split: bool, classes: tuple[str, ...]
) -> Images:
  """The images of `blocks`, from the cache or after writing them there; `key` says all that the blocks depend on.

  `split` says that the data hold out some of them.
  """
  name = sha256_text(json.dumps([FORMAT, *key]))[:16]
  folder = cache_dir() / "images" / name
  with only_one(f"images-{name}"):
    if not folder.exists():
      with new_folder(folder) as temporary:
        _write(temporary, blocks())
  labels, identities, own = (open_array(folder / f"{part}.npy") for part in ("labels", "identities", "own"))
  sha256 = read_json(folder / "card.json")["sha256"]
  return Images(
    open_array(folder / "pixels.npy"), np.array(labels), identities, np.array(own) if split else None, sha256, classes
  )


def _write(folder: Path, blocks: Iterable[Block]) -> None:
  digest, identities, labels, own = hashlib.sha256(), [], [], []
  with contextlib.ExitStack() as stack:
    pixels: GrowingArray | None = None
    for images, classes, held in blocks:
      if pixels is None:
        digest.update(f"{images.dtype} {images.shape[1:]}".encode())
        pixels = stack.enter_context(GrowingArray(folder / "pixels.npy", images.dtype, images.shape[1:]))
      pixels.append(images)
      digest.update(np.ascontiguousarray(images).data)
      identities += map(identity, images)
      labels.append(classes)
      own += [held] * len(images)
  np.save(folder / "labels.npy", np.concatenate(labels))
  np.save(folder / "identities.npy", np.array(identities, np.uint64))
  np.save(folder / "own.npy", np.array(own))
  write_json(folder / "card.json", {"sha256": digest.hexdigest()})


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
  key: list[object] = ["image_folder", size]
  key += [[held, str(file.relative_to(root)), sha256_file(file)] for file, held, _ in found]
  return _prepared(key, lambda: _decoded(files, own, labels, size), given, tuple(classes.tolist()))


def _is_picture(path: Path) -> bool:
  return path.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts[-3:])


def _decoded(files: Sequence[Path], own: Sequence[bool], labels: np.ndarray, size: int) -> Iterator[Block]:
  """Pictures as uint8[1, H, W, C]: grey if all of them are; cut to a square and scaled where a size is given."""
  try:
    from PIL import Image
  except ImportError as error:
    raise UserError("config.data.name: Pillow is not here; pip install 'bigmodel[images]'") from error
  grey = all(_opened(Image, file, lambda image: image.mode in ("1", "L")) for file in files)

  def load(image: Any) -> np.ndarray:
    image = image.convert("L" if grey else "RGB")
    if size:
      side = min(image.size)
      left, top = (image.width - side) // 2, (image.height - side) // 2
      image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(image)

  first: tuple[int, ...] = ()
  for file, held, label in zip(files, own, labels, strict=True):
    pixels = _opened(Image, file, load)
    first = first or pixels.shape
    require(
      pixels.shape == first,
      f"config.data.image_size: {file} has {pixels.shape[1]} x {pixels.shape[0]} pixels and {files[0]}"
      f" {first[1]} x {first[0]}; give a size",
    )
    yield pixels.reshape(1, *first[:2], -1), np.array([label]), held


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
  splits = [split for split in ("train", heldout) if split]
  names = getattr(builder.info.features["label"], "names", None) or ()
  files = [builders.fingerprint(path) for split in splits for path in builder.info.splits[split].filepaths]

  def blocks() -> Iterator[Block]:
    shape: tuple[int, ...] = ()
    for split in splits:
      for row in _rows(name, builder, split):
        image = row["image"]
        shape = shape or image.shape
        same = image.shape == shape
        require(same, f"config.data.name: the images of {name!r} differ in shape: {shape} and {image.shape}")
        yield image[None], np.array([int(row["label"])]), split == heldout

  return _prepared(["tfds", builder.info.full_name, splits, files], blocks, bool(heldout), tuple(names))


def _rows(name: str, builder: Any, split: str) -> Any:
  try:
    source = builder.as_data_source(split=split)
    yield from (source[i] for i in range(len(source)))
  except ImportError as error:
    raise UserError(f"config.data.name: {name!r} needs Pillow; pip install 'bigmodel[images]'") from error


# ---- IDX


def _idx_images(folder: Path) -> Images:
  require(folder.is_dir(), f"config.data.path: no folder {str(folder)!r} with IDX files")
  splits = ("train", "t10k")
  files = {split: [_find(folder, split, kind) for kind in ("images", "labels")] for split in splits}
  key: list[object] = ["idx_images", [[sha256_file(file) for file in files[split]] for split in splits]]

  def blocks() -> Iterator[Block]:
    shapes = [_idx_header(files[split][0])[1] for split in splits]
    require(shapes[0][1:] == shapes[1][1:], f"config.data.path: images of {shapes[0]} and of {shapes[1]} in {folder}")
    for split, shape in zip(splits, shapes, strict=True):
      labels = np.concatenate(list(_idx(files[split][1])))
      require(
        shape[0] == len(labels), f"config.data.path: {shape[0]} {split} images and {len(labels)} labels in {folder}"
      )
      first = 0
      for images in _idx(files[split][0]):
        yield images[..., None] if images.ndim == 3 else images, labels[first : first + len(images)], split == "t10k"
        first += len(images)

  return _prepared(key, blocks, True, ())


def _find(folder: Path, split: str, kind: str) -> Path:
  found = sorted(folder.glob(f"{split}-{kind}*"))
  require(bool(found), f"config.data.path: no {split}-{kind}* in {folder}")
  return found[0]


def _idx_header(path: Path) -> tuple[np.dtype, tuple[int, ...]]:
  """Type and shape of the array of an IDX file."""
  with _idx_opened(path) as file:
    start = file.read(4)
    kind = IDX_TYPES.get(start[2]) if len(start) == 4 and start[:2] == b"\0\0" else None
    sizes = file.read(4 * start[3]) if kind is not None else b""
    require(kind is not None and len(sizes) == 4 * start[3] > 0, f"config.data.path: {path} is no IDX file")
    return np.dtype(kind), tuple(np.frombuffer(sizes, ">u4").astype(int).tolist())


@contextlib.contextmanager
def _idx_opened(path: Path) -> Iterator[Any]:
  try:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
      yield file
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(f"config.data.path: {path} cannot be read: {error}") from error


def _idx(path: Path) -> Iterator[np.ndarray]:
  """The array of a file of Yann LeCun's IDX format, plain or .gz, in blocks of some thousand rows."""
  kind, shape = _idx_header(path)
  header, row_bytes = 4 + 4 * len(shape), kind.itemsize * math.prod(shape[1:])
  with _idx_opened(path) as file:
    file.read(header)
    size = header
    for rows in chunks(shape[0], math.prod(shape[1:])):
      raw = file.read((rows.stop - rows.start) * row_bytes)
      size += len(raw)
      if len(raw) == (rows.stop - rows.start) * row_bytes:
        array = np.frombuffer(raw, kind).reshape(-1, *shape[1:])
        yield array.astype(array.dtype.newbyteorder("="))
    while more := file.read(1 << 20):
      size += len(more)
  wanted = header + shape[0] * row_bytes
  require(size == wanted, f"config.data.path: {path} has {size} bytes, its header says {wanted}: truncated?")
