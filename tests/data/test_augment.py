"""Augmentation: operations equal Pillow's, and depend only on the key, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bigmodel import data, study, tasks
from bigmodel.data import augment
from bigmodel.data.examples import Examples
from bigmodel.errors import Interrupted, UserError
from bigmodel.train.display import Display
from bigmodel.train.loop import train_runs
from bigmodel.train.stop import StopRequest

KEY = jax.random.key(0)
LEVELS = np.random.default_rng(0).integers(20, 200, (12, 10, 3)).astype(np.uint8)
PICTURE = jnp.asarray(LEVELS / 255, jnp.float32)
BATCH = jnp.asarray(np.random.default_rng(1).random((16, 12, 10, 3)), jnp.float32)


def pillow(change):
  return np.asarray(change(Image.fromarray(LEVELS))) / 255


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    (augment.autocontrast, ImageOps.autocontrast),
    (augment.equalize, ImageOps.equalize),
    (lambda x: augment.solarize(x, 128 / 255), lambda i: ImageOps.solarize(i, 128)),
    (lambda x: augment.posterize(x, 3), lambda i: ImageOps.posterize(i, 3)),
    (lambda x: augment.OPERATIONS["color"](0.7, x), lambda i: ImageEnhance.Color(i).enhance(1.63)),
    (lambda x: augment.OPERATIONS["contrast"](0.7, x), lambda i: ImageEnhance.Contrast(i).enhance(1.63)),
    (lambda x: augment.OPERATIONS["brightness"](-0.7, x), lambda i: ImageEnhance.Brightness(i).enhance(0.37)),
    (lambda x: augment.OPERATIONS["sharpness"](0.7, x), lambda i: ImageEnhance.Sharpness(i).enhance(1.63)),
    (lambda x: augment.turn(x[:10], 90), lambda i: i.crop((0, 0, 10, 10)).rotate(90)),
    (lambda x: augment.turn(x, 180), lambda i: i.rotate(180)),
  ],
)  # fmt: skip
def test_operations_equal_pillows(ours, theirs):
  np.testing.assert_allclose(ours(PICTURE), pillow(theirs), atol=2.1 / 255)  # Pillow rounds and cuts off at each stage


def test_translations_have_the_right_direction():
  moved = augment.OPERATIONS["translate_y"](0.5 / 0.3 / 6, PICTURE)  # by one row of twelve
  np.testing.assert_allclose(moved[:-1], PICTURE[1:], atol=1e-5)
  np.testing.assert_array_equal(moved[-1], 0)
  sheared = augment.OPERATIONS["shear_x"](0.0, PICTURE)
  np.testing.assert_allclose(sheared, PICTURE, atol=1e-6)


def test_crops_flips_and_squares():
  cropped = augment.augment(("crop:3",), KEY, BATCH)
  padded = np.pad(BATCH, ((0, 0), (3, 3), (3, 3), (0, 0)))
  shifts = set()
  for before, after in zip(padded, cropped, strict=True):
    found = [(i, j) for i in range(7) for j in range(7) if np.array_equal(before[i : i + 12, j : j + 10], after)]
    assert len(found) == 1
    shifts |= set(found)
  assert len(shifts) > 8
  flipped = augment.augment(("flip",), KEY, BATCH)
  same, mirrored = (np.array([np.array_equal(a, b) for a, b in zip(BATCH[:, :, ::s], flipped, strict=True)]) for s in (1, -1))  # fmt: skip  # noqa: E501
  assert (same ^ mirrored).all()
  assert 0 < same.sum() < 16
  cut = augment.augment(("cutout:4",), KEY, BATCH)
  gone = np.asarray((cut == 0) & (BATCH > 0)).all(axis=-1).sum(axis=(1, 2))
  assert gone.max() == 16
  assert gone.min() >= 4  # at a corner
  np.testing.assert_array_equal(np.where(cut == 0, 0, BATCH), cut)


def test_randaugment_changes_images_within_bounds_and_differently():
  once = augment.augment(("randaugment:2:9",), KEY, BATCH)
  assert float(once.min()) >= 0
  assert float(once.max()) <= 1 + 1e-6
  changed = [not np.allclose(a, b) for a, b in zip(once, BATCH, strict=True)]
  assert sum(changed) >= 12
  other = augment.augment(("randaugment:2:9",), jax.random.key(1), BATCH)
  assert not np.allclose(once, other)


@pytest.mark.parametrize("weights", [(), (1.0, 0.0, 4.0, 0.5)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_images_and_labels_equally(weights, smoothing):
  """Each of the two labels has its share, and the weight of its class."""
  config = study.default_config("linear")
  config.task.update(augment=("mixup:1",), black=(0.0,) * 3, white=(1.0,) * 3, class_weights=weights)
  seen = {}

  def apply(x):
    seen["x"] = x
    return jnp.tile(jnp.arange(4.0), (16, 1)), {}

  batch = {"inputs": BATCH, "targets": jnp.arange(16) % 4}
  objective, logged = tasks.build(config).objective(apply, batch, {"label_smoothing": smoothing}, KEY)
  share = augment.mixing(("mixup:1",), KEY, 16)
  assert share is not None
  assert 0 < float(share.min()) < 0.3 < 0.7 < float(share.max()) < 1
  expected = share[:, None, None, None] * BATCH + (1 - share)[:, None, None, None] * np.roll(BATCH, 1, axis=0)
  np.testing.assert_allclose(seen["x"], expected, atol=1e-6)
  each = np.log(np.exp(np.arange(4)).sum()) - np.arange(4)  # the loss of each label
  labels, shares = np.arange(16) % 4, np.asarray(share)
  blended = lambda of_label: np.mean(shares * of_label[labels] + (1 - shares) * of_label[np.roll(labels, 1)])
  np.testing.assert_allclose(logged["loss"], blended(each), rtol=1e-5)
  smoothed = (1 - smoothing) * each + smoothing * each.mean()
  np.testing.assert_allclose(objective, blended(np.array(weights or (1.0,) * 4) * smoothed), rtol=1e-5)


def test_a_mesh_and_a_resumed_run_see_the_same_images(tmp_path, stop_at):
  images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
  np.savez(tmp_path / "a.npz", inputs=images, targets=np.arange(32) % 2)
  config = study.default_config("mlp")
  config.data.update(name="arrays", path=str(tmp_path / "a.npz"), folds=4)
  config.model.hidden = (8,)
  config.task.augment = ("crop:2", "flip", "rotate:20", "randaugment:1:5", "mixup:0.5")
  config.train.update(steps=6, batch_size=8, checkpoint_every=2, log_every=2)
  config.eval.batch_size = 8
  sealed = {}
  for name, mesh, stops in (("whole", 1, []), ("cut", 1, [3]), ("mesh", 4, [])):
    config.parallel.data = mesh
    run, examples = study.single_run(config, tmp_path / name)
    with Display(0, True) as display:
      for at in stops:
        with pytest.raises(Interrupted):
          train_runs([run], examples, display, stop_at(at))
      (sealed[name],) = train_runs([run], examples, display, StopRequest())
  assert sealed["whole"].result_sha256 == sealed["cut"].result_sha256
  assert sealed["mesh"].loss_eval == pytest.approx(sealed["whole"].loss_eval, rel=1e-5)
  assert isinstance(examples, Examples)
  assert run.config.task.black[0] == pytest.approx((0 - examples.mean[0]) / examples.deviation[0])


def test_augmenting_other_inputs_is_refused_and_a_plan_needs_no_data():
  digits = study.default_config("mlp")
  digits.data.name = "sklearn/digits"
  digits.train.steps = 1
  digits.task.augment = ("flip",)
  with pytest.raises(UserError, match=r"config.task.augment: is for images, not for inputs of \(64,\)"):
    study.single_run(digits, "unused")
  images = study.default_config("resnet")
  images.model.update(inputs=(8, 8, 3), outputs=2, width=8, stages=(1,), groups=2)
  images.task.augment = ("flip",)
  images.train.steps = 1
  resolved = study.resolve_for_plan(images, 1)
  batch = {"inputs": BATCH[:8, :8, :8], "targets": jnp.zeros(8, jnp.int32)}
  apply = lambda x: (jnp.stack([x.mean(axis=(1, 2, 3))] * 2, axis=1), {})
  objective, _ = tasks.build(resolved).objective(apply, batch, {"label_smoothing": 0.0}, KEY)
  assert np.isfinite(objective)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("crop:4", "flop"), r"no 'flop' \(did you mean 'flip'"),
    (("crop:x",), "the arguments of crop are numbers"),
    (("flip:3",), "flip takes 0 numbers"),
    (("cutout:-1",), "not positive"),
  ],
)
def test_unknown_operations_are_refused(names, message):
  config = study.default_config("resnet")
  config.train.steps = 1
  config.task.augment = names
  with pytest.raises(UserError, match=message):
    tasks.check(config)
  table = study.default_config("mlp")
  table.model.inputs = (5,)
  table.task.augment = ("flip",)
  with pytest.raises(UserError, match="is for images"):
    tasks.check(table)
  data.check(config)
