"""The automatic choice of laws: recovered by backtests within the points, combined, and refused for bad tables."""

import numpy as np
import polars as pl
import pytest

from bigmodel import experiments
from bigmodel.errors import UserError
from bigmodel.laws import any_columns, automatic, candidates, choice, fit_csv, fitting, forms, marquardt
from bigmodel.laws.candidates import Data
from bigmodel.laws.facts import Choice
from bigmodel.laws.fitting import Loss
from bigmodel.laws.source import Source

N = np.repeat(np.geomspace(1e7, 3e9, 8), 8)
D = N * np.tile(np.geomspace(4, 300, 8), 8)
NOISE = np.random.default_rng(0).normal(size=64)


@pytest.fixture
def quick(monkeypatch):
  """Regressions alone, which compile nothing."""
  monkeypatch.setattr(automatic, "candidates", lambda scales, shares, derived: candidates.regressions(scales, shares))


def chinchilla(N, D):
  return 1.7 + 400 * N**-0.34 + 1500 * D**-0.36


def test_levenberg_and_marquardt_find_the_optimum_of_newtons_method():
  law = forms.LAWS["power_offset"]
  x = np.geomspace(1e3, 1e9, 64)
  sets = [(0.3 + 30 * x**-0.25) * np.exp(size * NOISE) for size in (0.0, 0.003, 0.02)]
  thetas, costs = marquardt.best(law, fitting.stack([((x,), y, None) for y in sets]))
  for theta, cost, y in zip(thetas, costs, sets, strict=True):
    fit = fitting.fit(law, (x,), y, how=Loss("squares", 1.0))
    np.testing.assert_allclose(fitting.predict(law, theta, (x,)), fit.predict(x), rtol=1e-6)
    assert cost == pytest.approx(2 * fit.objective, rel=1e-6, abs=1e-12)


def test_a_law_is_chosen_by_backtests_and_forecasts_beyond_the_points():
  E = np.tile([1.0, 4, 16, 64, 2, 8, 32, 512], 8)
  loss = 1.5 + N**-0.2 * (3 + 8 * E**-0.3)
  fitted = N.max() > N
  points = Data({"N": N[fitted], "E": E[fitted]}, loss[fitted] * np.exp(1e-4 * NOISE[fitted]))
  beyond = {"N": N[~fitted] * 4, "E": E[~fitted]}
  chosen = automatic.fit({"": points}, ("N", "E"), at={"": beyond})
  truth = 1.5 + beyond["N"] ** -0.2 * (3 + 8 * beyond["E"] ** -0.3)
  np.testing.assert_allclose(chosen.predict(beyond), truth, rtol=5e-3)
  assert {"experts", "sum and product of powers in N, E"} & {law.name for law in chosen.tried[:2]}
  assert sum(law.weight for law in chosen.tried) == pytest.approx(1)
  assert [law.error for law in chosen.tried] == sorted(law.error for law in chosen.tried)


def test_every_registered_law_of_losses_is_tried_if_its_columns_are_there():
  tried = {each.name for each in candidates.candidates(["N", "D", "U", "E", "S", "P", "vocab"], [], ["C"])}
  curves = {name for name, law in forms.LAWS.items() if law.columns in (("x",), ("L",), ("B",))}
  assert set(forms.LAWS) - tried == curves | {"bimix", "learning_rate"}
  assert {"mixing3", "mixing_power3"} <= {each.name for each in candidates.candidates([], ["r1", "r2", "r3"])}


@pytest.mark.parametrize(
  ("at", "hidden"),
  [
    (None, {"N", "D"}),
    ({"N": np.array([1e10]), "D": np.array([1e9])}, {"N"}),
    ({"N": np.array([1e8]), "D": np.array([1e13])}, {"D"}),
    ({"N": np.array([1e8]), "D": np.array([1e9])}, {""}),
  ],
)
def test_backtests_hide_the_largest_values_of_the_columns_in_which_forecasts_lie_beyond(quick, at, hidden):
  points = Data({"N": N, "D": D}, chinchilla(N, D))
  splits = automatic._splits("", points, ("N", "D"), at)
  assert {split.column for split in splits} == hidden
  for split in splits:
    assert not (split.fit & split.test).any()
    if split.column:
      x = points.columns[split.column]
      assert x[split.fit].max() < x[split.test].min()


def test_losses_that_may_be_negative_are_forecast_up_to_their_offset(quick):
  """Where losses are not positive, no law can take their logs, and a constant is added to and taken from them."""
  groups = [any_columns._on_one_scale({"": Data({"N": N, "D": D}, chinchilla(N, D) - c)}) for c in (5, 7)]
  first, second = (automatic.fit(each, ("N", "D")).predict({"N": N, "D": D}) for each in groups)
  np.testing.assert_allclose(first - 2, second, rtol=1e-9)
  five, seven = (each[""] for each in groups)
  np.testing.assert_allclose(five.loss + five.shift, seven.loss + seven.shift, rtol=1e-12)


def test_intervals_widen_with_the_distance_beyond_what_backtests_hid(quick):
  """And by a fixed growth in a column with too few values for a backtest."""
  V = np.tile([1.0, 2, 4], 22)[:64]
  points = {"": Data({"N": N, "D": D, "V": V}, chinchilla(N, D) * V**-0.01 * np.exp(0.01 * NOISE))}
  at = {"N": N.max() * np.array([1.0, 10, 100, 100]), "D": np.full(4, 1e10), "V": np.array([1.0, 1, 1, 8])}
  chosen = automatic.fit(points, ("N", "D", "V"), at={"": at})
  widths = chosen.deviation(at)
  assert set(chosen.hidden) == {"N"}
  assert chosen.untested(at) == ["V"]
  assert widths[0] >= chosen.error
  assert widths[1] >= chosen.error * (np.log(10) / chosen.hidden["N"]) ** 0.5 > 1.2 * chosen.error
  assert widths[2] >= chosen.error * (np.log(100) / chosen.hidden["N"]) ** 0.5
  assert widths[3] >= np.hypot(widths[2] / 2, automatic.BEYOND * np.log(2))
  below = {"N": N.min() / np.array([1.0, 10, 100]), "D": np.full(3, 1e10), "V": np.ones(3)}
  assert (np.diff(chosen.deviation(below)) > automatic.BEYOND).all()


def test_places_that_no_backtest_could_test_are_noted(tmp_path, quick):
  V = np.tile([1.0, 2, 4], 22)[:64]
  runs = table_of(tmp_path / "runs.csv", N=N, D=D, V=V, loss=chinchilla(N, D) * V**-0.01)
  places = table_of(tmp_path / "new.csv", N=[1e8], D=[1e10], V=[8.0])
  found = fit_csv.fit(Source(runs, {"N": "N", "D": "D", "V": "V"}), "auto", places=places)
  assert [note for note in found.warnings if "V = 8 is 2 times beyond the largest point, and backtests could" in note]
  assert isinstance(found.choice, Choice)
  assert found.choice.predicted[0].beyond == pytest.approx(2)


@pytest.mark.parametrize(
  ("at", "times"),
  [
    ({"N": 1e10, "D": 1e12, "U": 1e10}, 10.0),
    ({"N": 1e8, "D": 1e11, "U": 1e13}, 100.0),
    ({"N": 1e7, "D": 1e11, "U": 1e10}, 0.1),
    ({"N": 1e8, "D": 1e11, "U": 1e10}, 1.0),
  ],
)
def test_the_distance_is_that_of_compute_or_of_the_furthest_other_column(at, times):
  """Compute of 6e19 to 6e21; N and D alone reach further."""
  points = {"N": np.array([1e7, 1e10, 1e8]), "D": np.array([1e12, 1e11, 1e12]), "U": np.array([1e10, 1e11, 1e10])}
  points["C"] = 6 * points["N"] * points["D"]
  values = {name: np.array([value]) for name, value in at.items()}
  assert any_columns.beyond(values, points) == pytest.approx(times)


def test_a_regression_recovers_its_surface():
  x, y = np.log(N / 1e8), np.log(D / 1e10)
  loss = np.exp(1 - 0.1 * x - 0.2 * y + 0.01 * x * y + 0.004 * y**2)
  (fitted,) = candidates.regressions(["N", "D"], [])[1].fit([Data({"N": N, "D": D}, loss)])
  np.testing.assert_allclose(
    fitted.predict({"N": 2 * N, "D": D}) - 1,
    -0.1 * (x + np.log(2)) - 0.2 * y + 0.01 * (x + np.log(2)) * y + 0.004 * y**2,
    atol=1e-3,
  )


def test_weights_fall_with_errors_and_small_ones_are_dropped():
  weights = automatic.weigh(np.array([1.0, 1.0, 2.0, 100.0]))
  assert weights[0] == weights[1] == pytest.approx(2**automatic.POWER * weights[2])
  assert weights[3] == 0
  assert weights.sum() == pytest.approx(1)


def table_of(path, **columns):
  pl.DataFrame(columns).write_csv(path)
  return str(path)


SHARES = np.random.default_rng(1).dirichlet([1.0] * 3, 40)


@pytest.fixture
def mixtures(tmp_path):
  loss = 2 + 0.5 * (0.02 + SHARES @ [1.0, 0.1, 0.0]) ** -0.3
  names = ("share_web", "share_code", "share_books")
  runs = table_of(tmp_path / "m.csv", **dict(zip(names, SHARES[:30].T, strict=True)), loss=loss[:30])
  return runs, table_of(tmp_path / "p.csv", **dict(zip(names, SHARES[30:].T, strict=True))), loss[30:]


@pytest.mark.parametrize("named", ["share_*", "share_web,share_code,share_books", "share_*/1"])
def test_shares_of_a_mixture_are_named_together_and_rows_of_another_table_are_forecast(mixtures, named, quick):
  runs, places, truth = mixtures
  found = fit_csv.fit(Source(runs, {"r": named}), "auto", places=places).choice
  assert isinstance(found, Choice)
  assert found.backtests == 5
  assert [row.loss for row in found.predicted] == pytest.approx(truth, rel=0.03)
  for row in found.predicted:
    low, high = row.interval90
    assert low is not None
    assert high is not None
    assert low < row.loss < high


def test_a_law_of_mixtures_is_named_without_the_number_of_shares(mixtures, monkeypatch):
  asked = []
  monkeypatch.setattr(choice, "fit", lambda source, laws: asked.append((source.columns, [law.name for law in laws])))
  fit_csv.fit(Source(mixtures[0], {"r": "share_*"}), "mixing,mixing_power")
  named = {"r1": "share_web", "r2": "share_code", "r3": "share_books"}
  assert asked == [(named, ["mixing3", "mixing_power3"])]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"r": "nothing_*"}, r"--column r=nothing_\*: no two columns match; it has share_web"),
    ({"r": "share_*", "N": "params"}, "no column 'params' for --n"),
    ({"r": "share_web,share_much"}, "column 'share_much', row 2: 3.0 is not a share between 0 and 1"),
    ({"r": "share_web,share_much"}, "of percent, share_much/100 makes shares"),
    ({"r": "share_web,share_much/-3"}, "3.0 is not a share between 0 and 1 after its conversion"),
    ({"r": "share_web,share_code", "T": "same"}, "T is 1 in all 30 points, so its effect cannot be identified"),
  ],
)
def test_columns_that_cannot_be_used_are_refused_by_name(mixtures, tmp_path, quick, change, message):
  table = pl.read_csv(mixtures[0]).with_columns(share_much=pl.lit(3.0), same=pl.lit(1.0))
  table = table if "much" in change["r"] else table.drop("share_much")
  table.write_csv(tmp_path / "t.csv")
  with pytest.raises(UserError, match=message):
    fit_csv.fit(Source(str(tmp_path / "t.csv"), change), "auto")


def test_a_group_that_cannot_be_fitted_is_left_out_with_a_note(tmp_path, quick):
  a, loss = np.geomspace(1, 9, 20), np.geomspace(3, 2, 20)
  columns = {"a": [*a, 1.0, 1.0], "loss": [*loss, 3.0, 3.1], "g": ["one"] * 20 + ["two"] * 2}
  found = fit_csv.fit(Source(table_of(tmp_path / "g.csv", **columns), {"a": "a"}, group="g"), "auto")
  assert any("group two: 2 points; 1 columns need at least 4" in note for note in found.warnings)


def test_too_few_points_equal_losses_and_unknown_groups_are_refused(tmp_path, quick):
  few = table_of(tmp_path / "few.csv", a=[1.0, 2, 3, 4], b=[1.0, 5, 2, 3], loss=[3.0, 2, 2, 1])
  with pytest.raises(UserError, match="4 points; 2 columns need at least 5"):
    fit_csv.fit(Source(few, {"a": "a", "b": "b"}), "auto")
  flat = table_of(tmp_path / "flat.csv", a=np.arange(1, 9), loss=[-2.0] * 8)
  with pytest.raises(UserError, match="the loss is -2 in all 8 points"):
    fit_csv.fit(Source(flat, {"a": "a"}), "auto")
  runs = table_of(tmp_path / "g.csv", a=np.geomspace(1, 9, 20), g=["one"] * 20, loss=np.geomspace(3, 2, 20))
  places = table_of(tmp_path / "p.csv", a=[10.0], g=["two"])
  with pytest.raises(UserError, match="no points of group 'two'"):
    fit_csv.fit(Source(runs, {"a": "a"}, group="g"), "auto", places=places)
  with pytest.raises(UserError, match="--predict: is for --law=auto"):
    fit_csv.fit(Source(runs, {"a": "a"}, group="g"), "power", places=places)


@pytest.mark.slow
def test_the_automatic_choice_extrapolates_better_than_laws_of_people(scaling_data):
  _, results = experiments.run("automatic_laws", str(scaling_data))
  compared = [(result.what, result.ours, result.published) for result in results if result.published is not None]
  assert len(compared) == 5
  assert [each for each in compared if each[1] <= each[2]] == []
