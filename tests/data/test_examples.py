"""Examples: read as they are, split without leaks, refused with their row or file."""

import gzip
import struct

import numpy as np
import pytest

from bigmodel import data as room
from bigmodel import study
from bigmodel.data import examples, pipeline
from bigmodel.data.examples import Examples
from bigmodel.data.splits import folds_of
from bigmodel.errors import UserError
from bigmodel.study import default_config


def idx(array):
  return struct.pack(f">2x2B{array.ndim}I", 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder(folder, change=lambda name, raw: raw):
  rng = np.random.default_rng(0)
  for split, count in (("train", 40), ("t10k", 12)):
    images, labels = rng.integers(0, 256, (count, 6, 5)), np.arange(count) % 4
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
      name = f"{split}-{kind}-ubyte"
      raw = change(name, idx(array))
      if split == "train":
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
      else:
        (folder / name).write_bytes(raw)
  return folder


def images_config(folder):
  config = default_config("mlp")
  config.data.path = str(folder)
  config.train.update(steps=3, batch_size=8)
  return config


def arrays_config(path, inputs, targets, family="mlp", task="classification"):
  np.savez(path, inputs=inputs, targets=targets)
  config = default_config(family, task)
  config.data.update(name="arrays", path=str(path))
  config.train.update(steps=3, batch_size=8)
  return config


def test_idx_files_are_read_as_they_are(tmp_path):
  data = examples.prepare(images_config(idx_folder(tmp_path)))
  expected = np.random.default_rng(0).integers(0, 256, (40, 6, 5))
  np.testing.assert_array_equal(data.inputs[data.places["train"], ..., 0], expected)
  np.testing.assert_array_equal(data.targets[data.places["validation"]], np.arange(12) % 4)
  assert data.facts["inputs"] == (6, 5, 1)
  assert data.facts["outputs"] == 4
  rows = data.rows("train", np.arange(40))["inputs"]
  assert rows.mean() == pytest.approx(0, abs=1e-5)
  assert rows.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda name, raw: raw[:-3] if name.startswith("t10k-images") else raw, "its header says .*: truncated"),
    (lambda name, raw: b"no" + raw if "labels" in name else raw, "is not an IDX file"),
    (lambda name, raw: raw[:-1] + b"\x09" if name == "t10k-labels-idx1-ubyte" else raw,
     "validation example 11 has the label 9, which is not one of the 4 classes"),
  ],
)  # fmt: skip
def test_bad_images_are_refused_with_their_file_or_row(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    examples.prepare(images_config(idx_folder(tmp_path, change)))
  with pytest.raises(UserError, match="no folder"):
    examples.prepare(images_config(tmp_path / "none"))


def test_folds_are_parts_that_keep_the_shares_of_classes():
  targets = np.repeat([0, 1, 2], [50, 20, 5])
  fold = folds_of(targets, 5, stratified=True)
  for part in range(5):
    np.testing.assert_array_equal(np.bincount(targets[fold == part]), [10, 4, 1])
  np.testing.assert_array_equal(fold, folds_of(targets, 5, stratified=True))
  assert len(set(folds_of(targets, 75, stratified=False))) == 75


def test_normalisation_is_fitted_on_training_examples_only(tmp_path):
  rng = np.random.default_rng(0)
  inputs, targets = rng.standard_normal((50, 3)).astype(np.float32), np.arange(50) % 2
  config = arrays_config(tmp_path / "a.npz", inputs, targets)
  data = examples.prepare(config)
  held = folds_of(targets, 5, stratified=True) == 0
  inputs[held] += 100  # shifts what is held out
  moved = examples.prepare(arrays_config(tmp_path / "b.npz", inputs, targets))
  np.testing.assert_array_equal(data.mean, moved.mean)
  np.testing.assert_array_equal(data.deviation, moved.deviation)
  places = np.arange(40)
  np.testing.assert_array_equal(data.rows("train", places)["inputs"], moved.rows("train", places)["inputs"])
  assert data.sha256 != moved.sha256


def test_data_scales_are_nested_and_every_example_comes_once_per_epoch(tmp_path):
  inputs = np.arange(50, dtype=np.float32)[:, None] * [[1.0, 1.0]]
  config = arrays_config(tmp_path / "a.npz", inputs, np.arange(50) % 2)
  config.data.normalise = "none"
  config.train.batch_size = 10
  seen = {}
  for count in (0, 10, 20):
    config.data.examples = count
    rows = pipeline.train_pipeline(config, examples.prepare(config), 1000)
    epochs = [np.concatenate([rows.batch(rows.rows // 10 * e + s)["inputs"][:, 0] for s in range(rows.rows // 10)])
              for e in range(2)]  # fmt: skip
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
    assert list(epochs[0]) != list(epochs[1])
    seen[count] = set(epochs[0])
  assert seen[10] < seen[20] < seen[0]
  assert len(seen[0]) == 40
  config.data.repeat = False
  with pytest.raises(UserError, match=r"steps of 10 examples are 500 epochs of 20 examples"):
    pipeline.train_pipeline(config, examples.prepare(config), 1000)


def test_folds_share_their_examples(tmp_path):
  rng = np.random.default_rng(0)
  config = arrays_config(tmp_path / "a.npz", rng.standard_normal((50, 2)), np.arange(50) % 2)
  datasets = pipeline.Datasets(config)
  config.data.fold = 1
  base, other = datasets.base, datasets(config)
  assert isinstance(base, Examples)
  assert isinstance(other, Examples)
  assert other.inputs is base.inputs
  assert set(other.places["validation"]).isdisjoint(base.places["validation"])
  assert (other.mean != base.mean).any()


def test_targets_of_a_regression_are_in_units_of_their_training_deviation(tmp_path):
  rng = np.random.default_rng(0)
  targets = 7 + 3 * rng.standard_normal(50)
  data = examples.prepare(
    arrays_config(tmp_path / "a.npz", rng.standard_normal((50, 2)), targets, "linear", "regression")
  )
  train = data.rows("train", np.arange(data.count("train")))["targets"]
  assert train.mean() == pytest.approx(0, abs=1e-6)
  assert train.std() == pytest.approx(1, abs=1e-6)
  mean, deviation = data.facts["target_mean"], data.facts["target_deviation"]
  assert isinstance(mean, float)
  assert isinstance(deviation, float)
  back = data.targets[data.places["validation"]] * deviation + mean
  held = folds_of(targets, 5, stratified=False) == 0
  np.testing.assert_allclose(back, targets[held], rtol=1e-5)


def test_bad_arrays_are_refused_with_their_row(tmp_path):
  good, labels = np.ones((20, 3)), np.arange(20) % 2
  bad = good.copy()
  bad[7, 1] = np.nan
  ragged = np.empty(2, object)
  ragged[:] = [np.zeros((3, 3)), np.zeros((4, 4))]
  for inputs, targets, message in (
    (bad, labels, "inputs of example 7 are not finite"),
    (good, labels - 1, "example [0-9]+ has the label -1"),
    (good, labels + 0.5, "has the label 0.5"),
    (good, labels[:5], "20 inputs and targets of shape"),
    (ragged, labels, "rows differ in shape"),
  ):
    with pytest.raises(UserError, match=message):
      examples.prepare(arrays_config(tmp_path / "a.npz", inputs, targets))


def test_a_given_split_has_no_folds_and_broken_files_are_named(tmp_path):
  config = images_config(idx_folder(tmp_path))
  config.data.fold = 1
  with pytest.raises(UserError, match="the images come with a split"):
    room.check(config)
  config.data.split = "stratified"
  room.check(config)
  parts = [examples.prepare(study.with_overrides(config, {"data.fold": k})).places["validation"] for k in range(5)]
  assert sorted(np.concatenate(parts)) == list(range(40))  # no test image is among them
  config = arrays_config(tmp_path / "a.npz", np.ones((20, 3)), np.arange(20) % 2)
  whole = (tmp_path / "a.npz").read_bytes()
  for broken in (whole[:100], b""):
    (tmp_path / "a.npz").write_bytes(broken)
    with pytest.raises(UserError, match=r"a.npz cannot be read"):
      examples.prepare(config)
  np.save(tmp_path / "a.npy", np.ones(3))
  for other in (b"version https://git-lfs.github.com/spec/v1\n", (tmp_path / "a.npy").read_bytes()):
    (tmp_path / "a.npz").write_bytes(other)
    with pytest.raises(UserError, match=r"a.npz(: it is a Git LFS pointer| cannot be read: not an .npz file)"):
      examples.prepare(config)


def test_the_config_of_examples_is_checked_against_them(tmp_path):
  config = arrays_config(tmp_path / "a.npz", np.ones((20, 3)), np.arange(20) % 4)
  config.model.inputs = (5,)
  with pytest.raises(UserError, match=r"config.model.inputs: \(5,\); the examples are \(3,\)"):
    study.single_run(config, tmp_path / "run")
  config.model.update(inputs=(), outputs=2)
  with pytest.raises(UserError, match="not one of the 2 classes"):
    study.single_run(config, tmp_path / "run")


def test_scikit_learn_s_sets_are_found_by_name():
  pytest.importorskip("sklearn")
  config = default_config("linear")
  config.data.name = "sklearn/digits"
  data = examples.prepare(config)
  assert data.facts["inputs"] == (64,)
  assert data.count("train") + data.count("validation") == 1797
  config.data.name = "sklearn/digit"
  with pytest.raises(UserError, match="did you mean 'digits'"):
    examples.prepare(config)
