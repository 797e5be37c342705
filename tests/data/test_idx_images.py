"""Files in the IDX format: read to their end, or refused in one line that names the file."""

import gzip
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.data.example_sources import idx_images
from bigmodel.errors import UserError
from bigmodel.study import default_config

PIXELS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)


def idx(array, kind=8, shape=None):
  shape = array.shape if shape is None else shape
  return struct.pack(f">2x2B{len(shape)}I", kind, len(shape), *shape) + array.tobytes()


def files(**changed):
  contents = {}
  for split in ("train", "t10k"):
    contents[f"{split}-images"], contents[f"{split}-labels"] = idx(PIXELS), idx(np.arange(6, dtype=np.uint8) % 2)
  return contents | {name.replace("_", "-"): content for name, content in changed.items()}


def read(folder, contents):
  folder.mkdir(exist_ok=True)
  for path in folder.iterdir():
    path.unlink()
  for name, content in contents.items():
    (folder / name).write_bytes(content)
  config = default_config("mlp")
  config.data.update(name="idx_images", path=str(folder))
  return idx_images.read(config.data)


def test_floats_and_packed_files_are_read(tmp_path):
  contents = files(train_images=idx(PIXELS.astype(">f4"), 13), t10k_images=idx(PIXELS.astype(">f4"), 13))
  contents["t10k-labels.gz"] = gzip.compress(contents.pop("t10k-labels"))
  arrays = read(tmp_path / "a", contents)
  assert arrays.inputs.dtype == np.float32
  np.testing.assert_array_equal(arrays.inputs[6:, ..., 0], PIXELS)
  np.testing.assert_array_equal(arrays.targets, [0, 1] * 6)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"train_images": b""}, "train-images is not an IDX file"),
    ({"train_images": b"<html>"}, "train-images is not an IDX file"),
    ({"train_images": idx(PIXELS)[:-1]}, "train-images has 39 bytes, its header says 40"),
    ({"t10k_images": idx(PIXELS) + b"0"}, "t10k-images has 41 bytes, its header says 40"),
    ({"train_images": idx(PIXELS, shape=(1 << 31, 2, 2))}, "2147483648 train images and 6 labels"),
    ({"train_images": idx(PIXELS, shape=(1, 1 << 31, 1 << 31))}, "train-images has the shape"),
    ({"train_images": idx(PIXELS, shape=(0, 2, 2))}, r"train-images has the shape \[0, 2, 2\]"),
    ({"train_images": idx(PIXELS.ravel())}, r"train-images has the shape \[24\]"),
    ({"train_labels": idx(PIXELS)}, "train-labels has the shape"),
    ({"train_labels": idx(np.zeros(5, np.uint8))}, "6 train images and 5 labels"),
    ({"train_images": gzip.compress(idx(PIXELS))}, "gzip"),
    ({"train_images": idx(np.full((6, 2, 2), np.nan, ">f4"), 13)}, "not finite"),
  ],
)
def test_refused(tmp_path, changed, message):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path / "a", files(**changed))
  assert "\n" not in str(error.value)


@pytest.mark.fuzz
@given(st.sampled_from(sorted(files())), st.one_of(st.binary(max_size=60), st.integers(0, 1 << 40)))
def test_any_bytes_give_images_or_one_line(tmp_path_factory, name, change):
  folder = tmp_path_factory.getbasetemp() / "idx"
  contents = files()
  if isinstance(change, bytes):
    contents[name] = change
  else:
    random_, data = random.Random(change), bytearray(contents[name])
    at = random_.randrange(len(data))
    data[at : at + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
    contents[name] = bytes(data)
  try:
    arrays = read(folder, contents)
  except UserError as error:
    assert len(str(error).splitlines()) == 1  # noqa: PT017
  else:
    assert len(arrays.inputs) == len(arrays.targets)
