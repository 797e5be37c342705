"""The forecaster: weights of laws, forecasts from few points, contents of seals, and accepted laws."""

import dataclasses
import math

import numpy as np
import pytest
from handmade import record  # its folder is on the path of pytest

from bigmodel.errors import UserError
from bigmodel.files import write_json
from bigmodel.laws import chinchilla, facts, fitting, forecast, forms, marquardt, outliers, seals, summary
from bigmodel.laws.emphases import EMPHASES
from bigmodel.laws.facts import Forecast, TableForecast, Target
from bigmodel.laws.points import Points

THETA = np.array([math.log(400.0), math.log(1500.0), math.log(1.7), 0.34, 0.36])


def loss_at(N, D):
  return np.exp(chinchilla.log_loss(THETA, np.log(N), np.log(D)))


def runs(count, noise=0.003, seed=0):
  """Returns runs of random size and length within a factor of 100 of compute."""
  rng = np.random.default_rng(seed)
  C = 1e18 * 100 ** np.sort(rng.uniform(size=count))
  N = 0.1 * np.sqrt(C) * np.exp(rng.uniform(-1, 1, size=count))
  D = C / (6 * N)
  return Points(N, D, C, loss_at(N, D) * np.exp(noise * rng.normal(size=count)))


def records_of(points):
  each = zip(points.N, points.D, points.C, points.loss, strict=True)
  return [
    record(
      **dict.fromkeys(("params_total", "params_active", "params_non_embedding"), round(N)),
      tokens=D,
      flops_6nd=C,
      loss_eval=loss,
    )
    for N, D, C, loss in each
  ]


def test_the_order_of_rows_changes_nothing():
  """Nine points cannot identify five parameters, so that fits end at one of several optima."""
  rng = np.random.default_rng(0)
  C = np.repeat([1e18, 2e18, 4e18], 3)
  N = 0.1 * np.sqrt(C) * np.tile([0.5, 1.0, 2.0], 3)
  points = Points(N, C / (6 * N), C, loss_at(N, C / (6 * N)) * np.exp(0.05 * rng.normal(size=9)))
  ask = (np.array([1e10]), np.array([1e12]), np.array([6e22]))
  first, second = (
    forecast.fit(points[order], bootstraps=20).predict(*ask) for order in (np.arange(9), np.arange(9)[::-1])
  )
  assert (first.predicted, first.low, first.high) == (second.predicted, second.low, second.high)


def test_weights_follow_from_errors_at_larger_runs():
  """A wrong law (of N alone) gets little weight, and the mean is close to the true law."""
  points = runs(40)
  laws = [forms.LAWS[name] for name in ("chinchilla", "kaplan_n")]
  forecaster = forecast.fit(points, laws)
  assert forecaster.spread.origins > 0
  assert forecaster.weights.sum() == pytest.approx(1)
  assert forecaster.method().weights["chinchilla"] > 0.9
  (predicted,) = forecaster.predict([1e10], [1e11], [6e21]).predicted
  assert predicted == pytest.approx(loss_at(1e10, 1e11), rel=0.02)


def test_rival_laws_count_alike_among_few_runs():
  """Ten runs cannot say which of two good laws is better; a law of N alone is far worse, and has no weight."""
  laws = [forms.LAWS[name] for name in ("chinchilla", "overtraining", "kaplan_n")]
  weights = forecast.fit(runs(10), laws, bootstraps=2).method().weights
  assert weights == pytest.approx({"chinchilla": 0.5, "overtraining": 0.5, "kaplan_n": 0.0})


def test_the_noise_is_a_quartile_of_that_around_each_fit(monkeypatch):
  """Of many fits to few runs some have small residuals by chance."""
  around = iter(0.001 * np.arange(1, 1 + len(EMPHASES)))
  monkeypatch.setattr(forecast, "_noise", lambda made, of: next(around))
  assert forecast.fit(runs(10), [chinchilla.LAW], bootstraps=2).spread.noise == pytest.approx(0.002)


def test_the_noise_between_seeds_widens_intervals_that_residuals_make_too_narrow():
  points = runs(7, noise=0.0)
  N, D, C = (x[-1:] for x in (points.N, points.D, points.C))
  quiet, noisy = (forecast.fit(points, [chinchilla.LAW], noise).predict(N, D, C) for noise in (0.0, 0.05))
  assert noisy.noise == 0.05
  assert noisy.high[0] / noisy.low[0] > 1.1 > quiet.high[0] / quiet.low[0]


@pytest.mark.slow
def test_intervals_from_few_points_hold_at_eight_times_the_compute():
  """Forty small studies of Chinchilla's law: too wide rather than too narrow, for a law that does not bend."""
  inside = []
  for seed in range(40):
    points = runs(8 + seed % 6, noise=0.01, seed=seed)
    C = 8 * points.C.max()
    N = 0.1 * math.sqrt(C)
    said = forecast.fit(points, bootstraps=20).predict([N], [C / 6 / N], [C])
    inside.append(said.low[0] <= loss_at(N, C / 6 / N) <= said.high[0])
  assert np.mean(inside) >= 0.9


def test_a_seal_names_the_forecaster_its_version_and_its_weights():
  points = runs(30)
  target = Target(N=1e9, D=1e11, C=6e20, run_id="")
  made = summary.make_forecast(records_of(points), ["chinchilla", "overtraining", "isoflop"], "flops_6nd", target, None)
  method = made.forecaster
  assert method
  assert (method.name, method.version) == (forecast.NAME, forecast.VERSION)
  assert list(method.weights) == ["chinchilla", "overtraining"]
  assert sum(method.weights.values()) == pytest.approx(1)
  sd = math.hypot(*(made.parts[name] or 0.0 for name in ("parameters", "discrepancy", "noise")))
  low, high = made.interval90
  assert math.log(high / low) == pytest.approx(2 * 1.8595 * sd, rel=1e-4)  # Student's t, 8 degrees of freedom


def test_a_forecast_without_named_laws_and_of_few_runs_weighs_the_usual_laws_by_their_residuals():
  """As in a study whose only law is isoflop. The growth of errors is that of published runs."""
  target = Target(N=1e9, D=1e11, C=6e20, run_id="")
  method = summary.make_forecast(records_of(runs(8)), ["isoflop"], "flops_6nd", target, None).forecaster
  assert method
  assert tuple(method.weights) == forecast.LAWS
  assert sum(method.weights.values()) == pytest.approx(1)
  assert method.weights["chinchilla"] > method.weights["kaplan_nd"]
  assert (method.origins, method.discrepancy) == (0, forecast.DISCREPANCY)


def test_small_runs_that_follow_another_law_hardly_change_a_forecast():
  """As runs that are too short for their warm-up; fits that mind the largest runs get most of the weight."""
  points = runs(60)
  short = np.maximum(3e19 / points.C, 1) ** 0.1  # 26% more loss at the smallest
  bent = dataclasses.replace(points, loss=points.loss * short)
  C = 8 * points.C.max()
  N = 0.1 * math.sqrt(C)
  true = loss_at(N, C / 6 / N)
  forecaster = forecast.fit(bent, bootstraps=20)
  even = [weight for fit, weight in zip(forecaster.fits, forecaster.weights, strict=True) if np.ptp(fit.weights) == 0]
  assert sum(even) < 0.05
  said = forecaster.predict([N], [C / 6 / N], [C])
  alone = fitting.fit(chinchilla.LAW, (bent.N, bent.D), bent.loss).predict(N, C / 6 / N)
  assert abs(math.log(said.predicted[0] / true)) < 0.3 * abs(math.log(alone / true))
  assert said.low[0] <= true <= said.high[0]


def test_a_diverged_run_that_was_found_changes_nothing():
  points = runs(40)
  loss = np.where(np.arange(40) == 20, 3 * points.loss, points.loss)
  found = outliers.find(chinchilla.LAW, (points.N, points.D), loss)
  assert np.flatnonzero(found).tolist() == [20]
  diverged = dataclasses.replace(points, loss=loss, weights=np.where(found, 0.0, 1.0))
  ask = ([1e10], [1e11], [6e21])
  first, second = (forecast.fit(each, bootstraps=20).predict(*ask) for each in (points[~found], diverged))
  assert (first.predicted, first.low, first.high) == (second.predicted, second.low, second.high)


def test_a_run_that_is_a_little_off_hardly_moves_a_fit():
  """10% more loss, which is 33 standard deviations of the noise and too little to be left out."""
  points = runs(40)
  off = dataclasses.replace(points, loss=np.where(np.arange(40) == 20, 1.1 * points.loss, points.loss))
  first, second = (
    forecast.fit(each, [chinchilla.LAW], bootstraps=2).fits[0].predict([1e10], [1e11])[0] for each in (points, off)
  )
  squares = fitting.fit(chinchilla.LAW, (off.N, off.D), off.loss, how=fitting.Loss("squares")).predict([1e10], [1e11])[
    0
  ]
  assert abs(second - first) < 0.2 * abs(squares - first)


def test_two_ways_of_minimising_hubers_loss_agree():
  points = runs(40)
  loss = np.where(np.arange(40) % 10 == 5, 1.1 * points.loss, points.loss)
  sets = fitting.stack([((points.N, points.D), loss, None)])
  (newton,), (value,), _ = fitting.best(chinchilla.LAW, sets, fitting.Loss("huber", 0.004))
  (theta,), (cost,) = marquardt.best(chinchilla.LAW, sets, delta=np.array([0.004]))
  assert cost / 2 == pytest.approx(value, rel=1e-5)
  N, D = np.array([1e10]), np.array([1e11])
  assert fitting.predict(chinchilla.LAW, theta, (N, D)) == pytest.approx(
    fitting.predict(chinchilla.LAW, newton, (N, D)), rel=1e-3
  )


def test_errors_grow_with_distance_as_on_published_runs():
  points = runs(30)
  forecaster = forecast.fit(points, [chinchilla.LAW], bootstraps=20)
  ratio, top = np.median(np.log(points.D / points.N)), np.log(points.N * points.D).max()
  scale = top + np.array([0.0, 3.0])
  N, D = np.exp((scale - ratio) / 2), np.exp((scale + ratio) / 2)
  near, far = forecaster.predict(N, D, 6 * N * D).discrepancy
  assert near < 0.003
  assert forecast.DISCREPANCY * 3 <= far < forecast.DISCREPANCY * 3 + 0.01
  assert forecast.DISCREPANCY == 0.0077


def test_distance_is_that_in_compute_and_that_in_tokens_for_each_parameter():
  points = runs(30)
  forecaster = forecast.fit(points, bootstraps=2)
  largest, ratios = np.log(points.N * points.D).max(), np.log(points.D / points.N)

  def at(scale, ratio):
    return forecaster.distance(np.exp((scale - ratio) / 2), np.exp((scale + ratio) / 2))

  inside = float(ratios.mean())
  assert at(largest, inside) == pytest.approx(0, abs=1e-9)
  assert at(largest + 2, inside) == pytest.approx(2)
  assert at(largest - 1, ratios.max() + 1) == pytest.approx(1)
  assert at(largest + 3, ratios.min() - 4) == pytest.approx(5)


def test_draws_of_all_fits_share_their_weights_of_points():
  """So that the spread of the mean is not smaller than that of its parts, whose errors are the same."""
  points = runs(30)
  forecaster = forecast.fit(points, [forms.LAWS[name] for name in ("chinchilla", "overtraining")])
  N, D = np.array([1e10]), np.array([1e11])
  first, second = (np.log(fit.predict(N, D, theta=fit.draws))[:, 0] for fit in forecaster.fits[:: len(EMPHASES)])
  assert np.corrcoef(first, second)[0, 1] > 0.7


@pytest.mark.parametrize("name", [name for name, law in forms.LAWS.items() if set(law.columns) <= set("NDC")])
def test_every_law_of_sizes_and_budgets_forecasts(name):
  """Every law of the registry with such columns, in a study of this law alone."""
  points = runs(30)
  target = Target(N=1e9, D=1e11, C=6e20, run_id="")
  made = summary.make_forecast(records_of(points), [name], "flops_6nd", target, None)
  assert made.forecaster
  assert made.forecaster.weights == pytest.approx({name: 1.0})
  low, high = made.interval90
  assert 0 < low < made.predicted < high


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("power", "get_study: laws: law power is of x; a forecast needs a law of N, D and C"),
    ("data_constrained", "law data_constrained is of U"),
    ("link", "law link is of L"),
    ("chinchila", "get_study: laws: no law 'chinchila' .did you mean 'chinchilla'"),
    ("missing.py:mine", "get_study: laws: no file '.*missing.py'"),
  ],
)
def test_laws_of_other_quantities_are_refused(name, message):
  with pytest.raises(UserError, match=message):
    forecast.find_laws([name], "get_study: laws")


# As they were sealed by the version that forecast from Chinchilla's law alone: one of a study, one of the command.
OLD_OF_A_STUDY = {
  "law": "chinchilla",
  "convention": "flops_6nd",
  "predicted": 1.857,
  "interval90": [1.448, 2.383],
  "parts": {"bootstrap": 0.02, "discrepancy": 0.1, "noise": 0.001, "quantile": 2.1, "distance": 2.1},
  "target": {"N": 48960, "D": 27000000, "C": 8e12, "run_id": "x"},
  "fitted": ["a", "b"],
  "sealed_at": "2026-01-01T00:00:00.000+00:00",
  "sha256": "f9a81fef1d089155b944701d8dca16922ef895b18a27247bbd454f692654eb6d",
}
OLD_OF_THE_COMMAND = {
  "points": "points.csv",
  "points_sha256": "0",
  "rows": [{"group": "", "N": 1e9, "D": 2e10, "C": 1.2e20, "predicted": 2.5, "interval90": [2.4, 2.6]}],
  "optimum": [],
  "reached": [],
  "sealed_at": "2026-01-01T00:00:00.000+00:00",
  "sha256": "89e28c10ad4dd72a3e2a6ed6ede2028b0d522d099efd4b9ffc5441b2f5aaa431",
}


def test_forecasts_that_earlier_versions_sealed_are_still_scored():
  old = seals.unseal(OLD_OF_A_STUDY, Forecast)
  provenance = seals.Provenance("2026-01-02T00:00:00.000+00:00", OLD_OF_A_STUDY["sha256"])
  ended = record(run_id="x", loss_eval=1.793)
  assert seals.score(old, ended, provenance).inside is True
  truth = {("", "1e+09", "2e+10"): [2.55, 2.45]}
  (row,) = seals.ledger([seals.unseal(OLD_OF_THE_COMMAND, TableForecast)], truth, ("N", "D"))
  assert row.actual == pytest.approx(2.5)
  assert seals.coverage([row]) == {"interval90": 1.0}


@pytest.mark.parametrize(("document", "kind"), [(OLD_OF_A_STUDY, Forecast), (OLD_OF_THE_COMMAND, TableForecast)])
def test_a_forecast_that_is_read_and_written_again_is_the_same_document(document, kind, tmp_path):
  """To the byte, so that its hash holds: whole numbers stay whole, and fields that it does not have are not added."""
  write_json(tmp_path / "old.json", document)
  seals.write(tmp_path / "new.json", seals.read(tmp_path / "old.json", kind))
  assert (tmp_path / "new.json").read_bytes() == (tmp_path / "old.json").read_bytes()


def test_a_document_of_another_kind_is_refused_with_the_field_that_is_wrong():
  with pytest.raises(UserError, match=r"^sealed\.json: .*missing required field `points`"):
    seals.unseal(OLD_OF_A_STUDY, TableForecast, "sealed.json")
  with pytest.raises(UserError, match=r"^here: Expected `float`, got `str` - at `\$\.predicted`"):
    facts.from_json({**OLD_OF_A_STUDY, "predicted": "low"}, Forecast, "here")
