"""Cross-validation: folds as an axis of a study, and intervals that respect them."""

import numpy as np
import pytest

from bigmodel import study
from bigmodel.data import splits
from bigmodel.files import read_json
from bigmodel.study import folds
from bigmodel.train.stop import StopRequest


def test_intervals_of_cross_validated_means_cover_the_truth():
  """For least squares on fresh data sets, the naive interval over folds is too narrow, and this one is not."""
  truth, rows = [], []
  for seed in range(400):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(60, 8)), np.ones(8)
    y = x @ w + rng.normal(size=60)
    errors = []
    for k in range(10):
      held = splits.folds_of(y, 10, False, seed) == k
      fit = np.linalg.lstsq(x[~held], y[~held], rcond=None)[0]
      errors.append(np.mean((y[held] - x[held] @ fit) ** 2))
    fit = np.linalg.lstsq(x[:54], y[:54], rcond=None)[0]
    truth.append(1 + np.sum((fit - w) ** 2))
    rows.append(errors)
  expected = np.mean(truth)  # of a training set of 54 rows
  cover = np.mean([low <= expected <= high for low, high in (folds.measure(e, 1 / 9).interval90 for e in rows)])
  assert 0.86 <= cover <= 0.99
  by_time = {"data.split": "time", "data.folds": 5}
  assert folds.overlap(by_time) == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]))
  assert folds.overlap({"data.folds": 5}) == 1 / 4
  measure = folds.measure([1.0, 2.0, 3.0], 1 / 2)
  mean, (low, high) = measure.mean, measure.interval90
  assert mean == 2.0
  assert high - low == pytest.approx(2 * 2.920 * np.sqrt(1 / 3 + 1 / 2), rel=1e-3)


def test_folds_are_an_axis_of_a_study(tmp_path):
  pytest.importorskip("sklearn")
  config = study.default_config("linear")
  config.data.update(name="sklearn/iris", folds=3)
  config.optim.lr = 0.05
  config.train.update(batch_size=16, steps=40, log_every=40)
  axes = {"optim.lr": [0.05, 0.001], "data.fold": [0, 1, 2], "data.split_seed": [0, 1]}
  the_study = study.Study("folds", "Which rate?", study.Grid(axes), laws=())
  prepared = study.prepare(config, the_study, tmp_path / "study")
  assert len(prepared.runs) == 12
  assert len({run.config.data.sha256 for run in prepared.runs.values()}) == 6
  study.run_study(prepared, True, StopRequest())
  facts = read_json(tmp_path / "study" / "report.json")
  good, bad = facts["cross_validation"]
  assert (good["runs"], good["overrides"]) == (6, {"optim.lr": 0.05})
  losses = [one["loss_eval"] for one in facts["runs"] if one["learning_rate"] == 0.05]
  assert good["measures"]["loss_eval"]["mean"] == pytest.approx(np.mean(losses))
  assert good["measures"]["loss_eval"]["interval90"][1] < bad["measures"]["loss_eval"]["interval90"][0]
  assert set(good["measures"]) >= {"loss_eval", "accuracy", "roc_auc"}
  assert "Cross-validation" in (tmp_path / "study" / "report.html").read_text()


def test_laws_describe_the_metric_that_a_study_names(tmp_path):
  pytest.importorskip("sklearn")
  config = study.default_config("linear")
  config.data.update(name="sklearn/digits", examples=1)
  config.optim.lr = 0.02
  config.train.update(batch_size=16, log_every=40)
  sizes = [{"model.outputs": 10 + extra} for extra in (0, 10)]
  design = study.Fractions(sizes, (50, 150, 450), axis="data.examples", epochs=2)
  the_study = study.Study("error", "Fewer mistakes?", design, laws=("chinchilla",), measure="accuracy")
  prepared = study.prepare(config, the_study, tmp_path)
  study.run_study(prepared, True, StopRequest())
  facts = read_json(tmp_path / "report.json")
  assert facts["loss"] == "1 - accuracy"
  for one in facts["runs"]:
    assert one["loss_eval"] == pytest.approx(1 - one["metrics"]["accuracy"])
  (law,) = facts["laws"]
  assert law["points"] == 6
  assert 0 <= law["params"]["E"] < min(one["loss_eval"] for one in facts["runs"]) + 0.05
