"""What judges forecasts, and the forecaster's calibration on points that are simulated from laws."""

import functools
import math

import numpy as np
import pytest
from scipy import special

from bigmodel import experiments
from bigmodel.config import load_module
from bigmodel.laws import forecast, scoring

NOISES = (0.005, 0.015)
DRAWS = 20
UP_TO = 6  # forecasts of a case in order: at 4, 8 and 32 times the largest compute, each at two sizes; 100 is left out
CORRECT, TOO_NARROW = 1.0, 0.6


def simulation():
  return load_module(str(experiments.find("calibration")))[0]


@functools.cache
def judged(truth, count):
  """`count` quickstarts from a true law: [(case, its forecasts at 4, 8 and 32 times)]; the same in every session."""
  calibration = simulation()
  cases = [calibration.simulate("quickstart", truth, NOISES[seed % 2], seed) for seed in range(count)]
  return [(case, calibration.judge(case, DRAWS)[np.arange(UP_TO)]) for case in cases]


def normal(scale):
  """Forecasts ln loss ~ N(ln N, scale * D): N and D stand for the center and the standard deviation."""

  def predict(N, D, C, level):
    del C
    half = special.ndtri(0.5 + level / 2) * scale * D
    return forecast.Prediction(N, N * np.exp(-half), N * np.exp(half), D, 0 * D, 0.0, 0 * D)

  return predict


@pytest.mark.parametrize(("scale", "holds"), [(CORRECT, True), (TOO_NARROW, False), (1 / TOO_NARROW, False)])
def test_correct_intervals_are_told_from_wrong_ones(scale, holds):
  random = np.random.default_rng(0)
  N, D = random.uniform(2, 4, 2000), random.uniform(0.01, 0.1, 2000)
  each = scoring.judge(normal(scale), N, D, N, N * np.exp(D * random.normal(size=2000)))
  assert all((abs(each.coverage(level) - level) < 0.03) == holds for level in (0.5, 0.8, 0.9))
  assert (each.chi_square() < 27.9) == holds  # 27.9 is exceeded in one case of a thousand
  assert each.shares().sum() == pytest.approx(1)


def test_biased_forecasts_fill_one_side_of_their_distribution():
  D = np.full(1000, 0.01)
  loss = 3 * np.exp(D * (np.random.default_rng(0).normal(size=1000) + 0.5))
  each = scoring.judge(normal(CORRECT), np.full(1000, 3.0), D, D, loss)
  assert each.shares()[5:].sum() == pytest.approx(special.ndtr(0.5), abs=0.04)
  assert each.shares()[9] > 2 * each.shares()[0]


def test_interval_scores_punish_a_miss_by_twenty_times_its_size():
  loss, low, high = np.exp([0.1, 0.5, -0.2]), np.exp(np.zeros(3)), np.exp(np.full(3, 0.3))
  scores = scoring.interval_score(loss, low, high, 0.9)
  assert scores == pytest.approx([0.3, 0.3 + 20 * 0.2, 0.3 + 20 * 0.2])


def test_joined_forecasts_are_those_of_all_sets():
  N, D = np.array([3.0, 2.0, 4.0]), np.full(3, 0.02)
  loss = np.array([3.1, 2.0, 3.9])
  both = scoring.judge(normal(CORRECT), N, D, N, loss)
  parts = [scoring.judge(normal(CORRECT), N[rows], D[rows], N[rows], loss[rows]) for rows in ([0], [1, 2])]
  joined = scoring.join(parts)
  assert (len(joined), joined.rmsle, joined.coverage(0.5)) == (3, both.rmsle, both.coverage(0.5))
  last = joined[np.array([1, 2])]
  assert (last.score.tolist(), last.inside.tolist()) == (both.score[1:].tolist(), both.inside[:, 1:].tolist())


def test_simulated_data_sets_are_what_they_say():
  """The same for the same seed; designs have their runs; losses at the best size are the least of their budget."""
  calibration = simulation()
  counts = {"isoFLOP 5 x 5": (25,), "quickstart": range(20, 26), "ladder of 8": (8,), "scattered 240": (240,)}
  for truth in calibration.TRUTHS:
    for design in calibration.DESIGNS:
      case, again = (calibration.simulate(design, truth, 0.001, 3) for _ in range(2))
      assert case.points.loss.tolist() == again.points.loss.tolist()
      assert len(case.points) in counts.get(design, range(12, 27))
      assert case.beyond.C[::2] / case.points.C.max() == pytest.approx(calibration.DISTANCES)
      best, other = (case.truth.loss(case.beyond.N[i::2], case.beyond.D[i::2]) for i in (0, 1))
      assert np.all(best < other)
      assert abs(np.log(case.beyond.loss / np.ravel((best, other), order="F"))).max() < 0.005


def test_the_ideal_width_is_that_of_many_fits_of_the_true_law():
  """By least squares of simulated points, to first order: no refit differs by more than a tenth."""
  calibration = simulation()
  case = calibration.simulate("scattered 240", "Chinchilla's", 0.001, 0)
  random = np.random.default_rng(0)
  form, theta, points, beyond = case.truth.form, case.truth.params, case.points, case.beyond
  at, there = (
    np.stack(
      [(np.log(form(theta + step, x.N, x.D)) - np.log(form(theta, x.N, x.D))) / 1e-6 for step in 1e-6 * np.eye(5)]
    )
    for x in (points, beyond)
  )
  noise = case.noise * random.normal(size=(4000, len(points)))
  fitted = np.linalg.lstsq(at.T, noise.T, rcond=None)[0].T @ there
  errors = fitted + case.noise * random.normal(size=fitted.shape)
  assert calibration.ideal_width(case) == pytest.approx(2 * 1.6449 * errors.std(axis=0), rel=0.05)


@pytest.mark.parametrize("truth", ["Chinchilla's", "bent"])
def test_intervals_of_a_quickstart_cover_the_truth(truth):
  """With and without misfit. If they are correct, at most 2 of 5 data sets are covered in one case of a hundred."""
  covered = scoring.join([each for _, each in judged(truth, 5)]).coverage()
  assert covered >= 0.6


def test_intervals_of_a_quickstart_are_not_wider_than_the_points_justify():
  """At most 2.2 times as wide as those of someone who knows the form of the law and the noise."""
  calibration = simulation()
  ratios = [each.width / calibration.ideal_width(case)[:UP_TO] for case, each in judged("Chinchilla's", 5)]
  assert np.median(ratios) <= 2.2
  assert np.median(ratios) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["Chinchilla's", "over-training", "Kaplan's", "nested", "bent"])
def test_intervals_of_many_quickstarts_cover_the_truth(truth):
  """By distance, for each law: 40 data sets. Correct intervals cover 31 or more with a probability of .98."""
  parts = [each for _, each in judged(truth, 40)]
  for i in range(UP_TO):
    covered = scoring.join([part[np.array([i])] for part in parts]).coverage()
    assert covered >= 31 / 40, f"{truth}, place {i}"
  calibration = simulation()
  if truth == "Chinchilla's":
    ratios = [each.width / calibration.ideal_width(case)[:UP_TO] for case, each in judged(truth, 40)]
    assert math.exp(np.mean(np.log(ratios))) <= 2.2
