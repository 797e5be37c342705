"""Pictures: read as stored, split by folders, and refused with the name of the file."""

import numpy as np
import pytest
from PIL import Image

from bigmodel import data as room
from bigmodel import study
from bigmodel.data import corpus, examples
from bigmodel.errors import UserError
from bigmodel.study import default_config

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 6, 5, 3), np.uint8)
ORDER = np.array([i for label in range(3) for i in range(label, 24, 3)])  # in which a folder's classes have them


def folder_of(root, pixels=PIXELS, split=lambda i: ""):
  for i, image in enumerate(pixels):
    path = root / split(i) / ("cat", "dog", "emu")[i % 3] / f"{i:02d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)
  return root


def config_of(root, name="image_folder", **fields):
  config = default_config("mlp")
  config.data.update(name=name, path=str(root), **fields)
  config.train.update(steps=3, batch_size=8)
  return config


def test_each_folder_is_a_class_and_pixels_are_as_stored(tmp_path):
  data = examples.prepare(config_of(folder_of(tmp_path)))
  np.testing.assert_array_equal(data.inputs, PIXELS[ORDER])
  np.testing.assert_array_equal(data.targets, np.repeat([0, 1, 2], 8))
  assert data.card["classes"] == ["cat", "dog", "emu"]
  assert data.count("train") + data.count("validation") == 24


@pytest.mark.parametrize("name", ["image_folder", "idx_images", "arrays", "table", "tokenizer"])
def test_paths_may_begin_in_the_home_folder(name, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = config_of("~/nowhere", name)
  if name == "tokenizer":
    config = default_config("decoder")
    config.data.update(name="text_files", path="~/nowhere", tokenizer="~/nowhere.json")
    (tmp_path / "nowhere.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "imported.json").write_text('{"begin": 0, "end": 1}')
    room.check(config)
    with pytest.raises(UserError, match=f"config.data.tokenizer: {tmp_path}/nowhere.json: it is a Git LFS pointer"):
      corpus.tokenizer_of(config)
    return
  if name in ("image_folder", "idx_images"):
    (tmp_path / "nowhere").mkdir()
    message = f"{tmp_path}/nowhere"
  else:
    config.data.path = f"~/nowhere{'.npz' if name == 'arrays' else '.csv'}"
    (tmp_path / config.data.path[2:]).write_text("version https://git-lfs.github.com/spec/v1\n")
    message = f"{tmp_path}/nowhere.* is a Git LFS pointer"
    config.data.update(target="a") if name == "table" else None
  with pytest.raises(UserError, match=message):
    examples.prepare(config)


def test_folders_called_train_and_test_are_the_split(tmp_path):
  root = folder_of(tmp_path, split=lambda i: "train" if i < 15 else "test")
  data = examples.prepare(config_of(root))
  assert data.count("train") == 15
  held = data.inputs[data.places["validation"]]
  assert {image.tobytes() for image in held} == {image.tobytes() for image in PIXELS[15:]}
  assert set(data.targets[data.places["validation"]]) == {0, 1, 2}


def test_grey_pictures_have_one_channel_and_a_size_cuts_and_scales(tmp_path):
  flat = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None], (24, 8, 12))
  data = examples.prepare(config_of(folder_of(tmp_path, flat), image_size=4))
  assert data.inputs.shape == (24, 4, 4, 1)
  assert (data.inputs == ORDER[:, None, None, None]).all()


def test_a_run_trains_on_pictures(tmp_path):
  config = study.resolve(config_of(folder_of(tmp_path)), examples.prepare(config_of(tmp_path)))
  assert config.model.outputs == 3


@pytest.mark.parametrize(
  ("break_it", "message"),
  [
    (lambda root: (root / "cat/00.png").write_bytes((root / "cat/00.png").read_bytes()[:-40]), r"cat/00\.png cannot"),
    (lambda root: (root / "dog/01.png").write_bytes(b"no picture"), r"dog/01\.png cannot be read: cannot identify"),
    (lambda root: Image.new("RGB", (7, 7)).save(root / "emu/02.png"), r"emu/02\.png has 7 x 7 pixels.*give a size"),
    (lambda root: [path.unlink() for path in root.glob("*/*")], "no picture"),
  ],
)
def test_a_bad_picture_is_named(tmp_path, break_it, message):
  break_it(folder_of(tmp_path))
  with pytest.raises(UserError, match=message) as caught:
    examples.prepare(config_of(tmp_path))
  assert "\n" not in str(caught.value)


def test_a_tfds_set_is_read_with_its_split_and_names(tmp_path):
  import io

  import tensorflow_datasets as tfds

  from bigmodel.data import builders

  def png(image):
    with io.BytesIO() as file:
      Image.fromarray(image).save(file, "png")
      return file.getvalue()

  class Pets(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      names = ["cat", "dog", "emu"]
      image, label = tfds.features.Image(shape=(6, 5, 3)), tfds.features.ClassLabel(names=names)
      features = tfds.features.FeaturesDict({"image": image, "label": label})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(0, 15), "test": self._generate_examples(15, 24)}

    def _generate_examples(self, start, stop):
      for i in range(start, stop):
        yield i, {"image": png(PIXELS[i]), "label": i % 3}

  with builders.quiet():
    Pets(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
  data = examples.prepare(config_of(tmp_path, "tfds/pets"))
  assert data.card["classes"] == ["cat", "dog", "emu"]
  held = {
    image.tobytes(): label
    for image, label in zip(*(a[data.places["validation"]] for a in (data.inputs, data.targets)), strict=True)
  }
  assert held == {PIXELS[i].tobytes(): i % 3 for i in range(15, 24)}
  with pytest.raises(UserError, match=r"not prepared|neither"):
    examples.prepare(config_of(tmp_path / "elsewhere", "tfds/pets"))
