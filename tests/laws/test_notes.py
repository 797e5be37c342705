"""Points are examined before they are fitted: repeats, seeds, outliers, and forecasts that do not depend on rows."""

import json

import hypothesis
import numpy as np
import pytest
from handmade import record  # its folder is on the path of pytest
from hypothesis import strategies

from bigmodel.cli import main
from bigmodel.laws import collinear, curves, forms, measured, notes, outliers, summary
from bigmodel.laws.points import Points
from bigmodel.laws.source import Source

RNG = np.random.default_rng(0)
N, D = (x.ravel() for x in np.meshgrid(np.geomspace(4e6, 3e8, 5), np.geomspace(2e7, 2e10, 5)))
LOSS = (1.7 + 400 / N**0.34 + 400 / D**0.28) * np.exp(1e-3 * RNG.normal(size=25))
X = np.repeat(np.geomspace(1e3, 1e6, 8), 2)
Y = (0.3 + 30 * X**-0.35) * np.exp(1e-2 * RNG.normal(size=16))
CHINCHILLA, POWER = forms.LAWS["chinchilla"], forms.LAWS["power_offset"]


def csv(path, header, *columns):
  rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
  path.write_text("\n".join([header, *rows]) + "\n")
  return str(path)


@pytest.mark.parametrize(
  ("wrong", "found"),
  [
    ({}, []),
    ({8: 12000.0}, [8]),
    ({8: 12000.0, 14: 10.83}, [8, 14]),
    ({0: 30.0, 24: 11.0}, [0, 24]),  # corners, which a surface follows most
    ({12: LOSS[12] * 1.3}, [12]),
    ({12: LOSS[12] / 10}, [12]),
    ({12: LOSS[12] * 1.05}, []),
  ],
)
def test_outliers_are_found(wrong, found):
  loss = LOSS.copy()
  for place, value in wrong.items():
    loss[place] = value
  assert np.flatnonzero(outliers.find(CHINCHILLA, (N, D), loss)).tolist() == found


def test_a_diverged_run_among_twelve_is_found():
  """Also the largest one, which makes the losses rise with scale."""
  C = np.repeat([1e17, 2e17, 4e17], 4)
  n = 0.1 * np.sqrt(C) * np.tile(np.geomspace(1 / 4, 4, 4), 3)
  d = C / 6 / n
  for place in (1, 11):
    loss = (1.7 + 400 / n**0.34 + 400 / d**0.28) * np.exp(3e-3 * np.random.default_rng(0).normal(size=12))
    loss[place] *= 2
    examined = notes.examine(CHINCHILLA, (n, d), notes.Losses(loss), range(2, 14))
    assert np.flatnonzero(~examined.kept).tolist() == [place]
    assert not any("rises with scale" in note for note in examined.notes)


def test_a_curve_that_flattens_or_bends_has_no_outliers():
  x = np.geomspace(1e2, 1e7, 30)
  flat = np.minimum(0.9, 5 * x**-0.3 + 0.05)
  bump = (0.1 + 5 * x**-0.3) * (1 + 0.3 * np.exp(-((np.log(x) - 10) ** 2) / 4))
  assert not outliers.find(POWER, (x,), flat).any()
  assert not outliers.find(POWER, (x,), bump).any()


def test_published_curves_have_no_outliers(scaling_data):
  import polars as pl

  table = pl.read_csv(scaling_data / "revisiting" / "language.csv", schema_overrides={"Model": pl.String})
  for part in table.partition_by("Domain", "Task", "Model"):
    x, y = (part[name].to_numpy().astype(float) for name in ("Seen Examples", "Loss"))
    assert not outliers.find(POWER, (x,), y).any()


LOSSES = {
  "rises": ((N, D), 1 / LOSS, "acc", "loss rises with scale.*use --loss=1-acc"),
  "rises in percent": ((N, D), 100 / LOSS, "acc", "loss rises with scale.*use --loss=100-acc"),
  "constant": ((N, D), np.full(25, 3.0), "loss", "the loss is 3 in all 25 points"),
  "perplexity": ((N, D), np.exp(LOSS), "val_ppl", "are perplexities"),
  "like perplexity": ((N, D), np.exp(1.5 * LOSS), "loss", "may be perplexities"),
  "steps": ((np.full(20, 1e7), np.arange(1, 21) * 1e9), 5 - np.log(np.arange(2, 22)), "loss", "equal steps of D"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_doubtful_losses_are_noted(kind):
  columns, loss, name, message = LOSSES[kind]
  found = notes.examine(CHINCHILLA, columns, notes.Losses(loss, name), range(2, len(loss) + 2)).notes
  with pytest.raises(AssertionError, match=message):
    raise AssertionError("; ".join(found))


def test_groups_of_similar_names_are_noted():
  assert notes.similar_names(["a", "b", "c d"]) == []
  assert "groups 'Small model' and 'small_model ' differ" in notes.similar_names(["Small model", "small_model "])[0]


def test_exact_repeats_are_counted_once_and_seeds_are_kept(tmp_path):
  again = [np.tile(values, 2) for values in (N, D, LOSS)]
  runs = measured.runs_of_csv(Source(csv(tmp_path / "a.csv", "n,d,loss", *again), {"N": "n", "D": "d"}))
  assert len(runs.points) == 25
  assert "25 rows, such as row 27, repeat an earlier row exactly" in runs.notes[0]
  seeds = [*again, np.repeat([0, 1], 25)]
  runs = measured.runs_of_csv(Source(csv(tmp_path / "b.csv", "n,d,loss,seed", *seeds), {"N": "n", "D": "d"}))
  assert len(runs.points) == 50


def test_seeds_of_one_x_are_all_used():
  """The forecast lies between those from the best and from the worst seeds, and does not depend on their order."""
  both, low, high = (
    float(curves.rows({"": (x, y)}, [("", 1e7)])[0].predicted)
    for x, y in ((X, Y), (X[::2], np.minimum(Y[::2], Y[1::2])), (X[::2], np.maximum(Y[::2], Y[1::2])))
  )
  assert low < both < high


def test_a_scale_with_many_seeds_weighs_as_much_as_one_run():
  many = np.append(X, np.full(40, X[0])), np.append(Y, Y[0] * np.exp(1e-4 * RNG.normal(size=40)))
  once = np.append(X, X[0]), np.append(Y, Y[0] * np.exp(1e-4))
  several, single = (curves.fit({"": xy})[0].logs(np.array([1e7]))[0] for xy in (many, once))
  np.testing.assert_allclose(several, single, atol=2e-3)


ORDERS = strategies.permutations(range(16)), strategies.lists(strategies.integers(0, 15), max_size=8)


@pytest.mark.fuzz
@hypothesis.given(*ORDERS)
def test_order_and_exact_repeats_never_change_the_points_of_a_forecast(tmp_path_factory, order, repeated):
  """Neither of curves with seeds nor of surfaces, whose points `forecast.fit` sorts before it fits them."""
  path = tmp_path_factory.getbasetemp() / "order.csv"
  curves_, surfaces = [], []
  for rows in (np.arange(16), np.array([*order, *repeated])):
    source = Source(csv(path, "x,n,d,loss", X[rows], N[rows], D[rows], LOSS[rows]), {"x": "x"})
    curves_.append(curves.tidy(*measured.curves_of_csv(source).data[""]))
    points = measured.runs_of_csv(Source(str(path), {"N": "n", "D": "d"})).points
    surfaces.append(points[np.lexsort((points.loss, points.D, points.N))])
  np.testing.assert_array_equal(*curves_)
  for name in ("N", "D", "C", "loss"):
    np.testing.assert_array_equal(*(getattr(points, name) for points in surfaces))


def test_order_and_exact_repeats_do_not_change_a_forecast(tmp_path, capsys):
  printed = []
  for rows in (np.arange(25), RNG.permutation(np.append(np.arange(25), [3, 3, 24]))):
    path = csv(tmp_path / "a.csv", "n,d,loss", N[rows], D[rows], LOSS[rows])
    command = ["forecast", path, "--n=n", "--d=d", "--at=7e9,1.4e11", "--at=1e21", "--law=chinchilla", "--json"]
    assert main.main(command) == 0
    printed.append(json.loads(capsys.readouterr().out)["rows"])
  assert printed[0] == printed[1]


LINE = np.geomspace(1e7, 1e9, 12)


def line_points(D, sizes=LINE):
  return Points(sizes, D, 6 * sizes * D, 2 + 400 / sizes**0.34 + 400 / D**0.28)


@pytest.mark.parametrize(
  ("D", "text"),
  [(20 * LINE, "D = 20 N"), (3e3 * LINE**0.7, "D = 3e+03 N^0.70"), (1e17 / LINE, "N D = 1e+17")],
)
def test_runs_on_a_line_are_named_and_places_off_it_say_how_far(D, text):
  points = line_points(D * np.exp(0.02 * np.random.default_rng(1).normal(size=12)))
  (note,) = collinear.of_runs(line_points(D))
  assert f"all 12 runs lie close to the line {text}," in note
  line = collinear.find(points)
  assert line is not None
  assert collinear.off_line("--at", 1e8, line.tokens(1e8), points) == []
  (off,) = collinear.off_line("--at", 1e8, 5 * line.tokens(1e8), points)
  assert "has 5 times the tokens of a run of that size on the line" in off
  (off,) = collinear.off_line("--at", 1e8, line.tokens(1e8) / 4, points)
  assert "has 4 times fewer tokens than a run of that size on the line" in off


def test_runs_that_do_not_lie_on_a_line_have_no_note():
  grid = Points(N, D, 6 * N * D, LOSS)
  assert collinear.of_runs(grid) == []
  assert collinear.off_line("--at", 1e9, 1e9, grid) == []
  single = line_points(20 * LINE, np.full(12, 1e8))  # the laws refuse a single N
  assert collinear.of_runs(single) == []


def test_two_sizes_only_are_noted():
  few = np.unique(N)[2] > N
  (note,) = notes.examine(CHINCHILLA, (N[few], D[few]), notes.Losses(LOSS[few]), range(2, 99)).notes
  assert "N has only two values" in note


def test_studies_name_diverged_runs_and_fit_without_them():
  def records(rows):
    return [
      record(run_id=f"run{i}", tokens=int(D[i]), params_active=int(N[i]), flops_6nd=6 * N[i] * D[i], loss_eval=loss)
      for i, loss in rows
    ]

  losses = list(enumerate(LOSS))
  diverged = summary.fit(records([*losses[:24], (24, 11.0)]), ["kaplan_nd"], "flops_6nd", None)
  without = summary.fit(records(losses[:24]), ["kaplan_nd"], "flops_6nd", None)
  (note,) = diverged.warnings
  assert "run run24 with a loss of 11" in note
  assert without.warnings == []
  assert diverged.laws[0].params == without.laws[0].params
