"""The commands for laws: fits to any CSV, sealed and scored forecasts, errors that name bad rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from bigmodel.cli import main
from bigmodel.errors import UserError
from bigmodel.laws import fitting, forecast, forms, notes

X = np.geomspace(1e6, 1e9, 16)


FITTED = {}  # forecasters by the points and laws that they were fitted to


@pytest.fixture(autouse=True)
def shared_fits(monkeypatch):
  """Fits a forecaster to the same points with the same laws once, for all verbs and tests, with 50 draws."""
  fit = forecast.fit

  def fit_once(points, laws=(), seed_noise=0.0, bootstraps=50):
    weights = None if points.weights is None else points.weights.tobytes()
    columns = [x.tobytes() for x in (points.N, points.D, points.C, points.loss)]
    key = (*columns, weights, tuple(laws), seed_noise, bootstraps)
    if key not in FITTED:
      FITTED[key] = fit(points, laws, seed_noise, bootstraps)
    return FITTED[key]

  monkeypatch.setattr(forecast, "fit", fit_once)


def csv(path, header, *columns):
  rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
  path.write_text("\n".join([header, *rows]) + "\n")
  return str(path)


def run(capsys, *arguments):
  code = main.main([*map(str, arguments), "--json"])
  captured = capsys.readouterr()
  return code, json.loads(captured.out), captured.err


def curve(path, offset=0.3):
  rng = np.random.default_rng(0)
  return csv(path, "size,ce", X, (offset + 30 * X**-0.25) * np.exp(1e-4 * rng.normal(size=16)))


def test_several_laws_are_fitted_and_the_best_forecaster_comes_first(tmp_path, capsys):
  code, result, _ = run(capsys, "fit", curve(tmp_path / "a.csv"), "--x=size", "--loss=ce", "--law=power,power_offset")
  assert code == 0
  assert [law["name"] for law in result["laws"]] == ["power_offset", "power"]
  best = result["laws"][0]
  assert best["params"]["a"] == pytest.approx(0.3, rel=0.02)
  assert best["backtest"]["rms_log_error"] < 0.01 < result["laws"][1]["backtest"]["rms_log_error"]
  low, high = best["intervals"]["a"]
  assert low < best["params"]["a"] < high


def test_a_forecast_is_sealed_not_overwritten_and_scored(tmp_path, capsys):
  points, seal = curve(tmp_path / "a.csv"), tmp_path / "seal.json"
  asked = ("forecast", points, "--x=size", "--loss=ce", "--at=2e9", f"--seal={seal}")
  code, said, _ = run(capsys, *asked)
  assert code == 0
  (row,) = said["rows"]
  truth = 0.3 + 30 * 2e9**-0.25
  assert row["interval90"][0] < truth < row["interval90"][1]
  code, _, err = run(capsys, *asked)
  assert code == 2
  assert "a sealed forecast is never overwritten" in err
  known = csv(tmp_path / "truth.csv", "size,ce", [2e9], [truth])
  code, scored, _ = run(capsys, "forecast", known, "--x=size", "--loss=ce", "--score", seal)
  assert code == 0
  assert scored["coverage"]["interval90"] == 1
  assert scored["rows"][0]["actual"] == truth
  seal.write_text(seal.read_text().replace(f"{row['predicted']}", "0.1"))
  code, _, err = run(capsys, "forecast", known, "--x=size", "--loss=ce", "--score", seal)
  assert code == 2
  assert "not what was sealed" in err


TRUE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.36}


def surface(N, D, saved=1.0):
  n, d = N * saved**0.5, D * saved**0.5
  return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


@pytest.fixture(scope="module")
def points(tmp_path_factory):
  """A CSV of 36 noisy runs: `other` is another count of parameters, `se` the noise, ten times larger in every sixth."""
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
  rng = np.random.default_rng(0)
  se = np.where(np.arange(36) % 6 == 3, 1e-2, 1e-3) * surface(N, D)
  loss = surface(N, D) + se * rng.normal(size=36)
  return csv(tmp_path_factory.mktemp("points") / "p.csv", "n,other,d,loss,se", N, 2 * N**0.97, D, loss, se)


def test_forecasts_of_sizes_and_tokens_and_of_a_budget(points, capsys):
  code, said, _ = run(capsys, "forecast", points, "--n=n", "--d=d", "--at=4e9,4e11", "--at=1e22")
  assert code == 0
  for row in said["rows"]:
    assert row["interval90"][0] < surface(row["N"], row["D"]) < row["interval90"][1]
    assert row["interval50"][1] - row["interval50"][0] < row["interval90"][1] - row["interval90"][0]
  assert said["rows"][1]["C"] == pytest.approx(1e22)
  (best,) = said["optimum"]
  assert best["spent"] == pytest.approx(1e22)
  assert best["N_interval90"][0] < best["N"] < best["N_interval90"][1]
  assert len(best["off"]) == 4


def test_a_forecast_respects_limits_and_finds_the_least_compute_for_a_loss(points, capsys):
  """Serving makes the best model smaller; a limit on memory costs compute; a loss below E cannot be reached."""
  ask = lambda *more: run(capsys, "forecast", points, "--n=n", "--d=d", "--law=chinchilla", *more)[1]
  free, serving = ask("--at=1e22", "--reach=2.2", "--reach=1.2"), ask("--at=1e22", "--served=1e12")
  assert serving["rows"][0]["N"] < 0.7 * free["rows"][0]["N"]
  small = ask("--at=1e22", "--reach=2.2", f"--max-params={free['rows'][0]['N'] / 8}")
  assert small["rows"][0]["N"] == pytest.approx(free["rows"][0]["N"] / 8)
  assert any("limits the size" in note for note in small["warnings"])
  assert not any("limits the size" in note for note in free["warnings"])
  assert small["rows"][0]["predicted"] > free["rows"][0]["predicted"]
  assert small["reached"][0]["C"] >= free["reached"][0]["C"]
  assert free["reached"][1]["C"] is None
  code, _, err = run(capsys, "forecast", points, "--n=n", "--d=d", "--at=1e22", "--served=-1")
  assert code == 2
  assert "--served: -1 is not a positive number" in err


def test_the_next_run_is_designed(points, capsys):
  code, said, _ = run(capsys, "design", points, "--n=n", "--d=d", "--target=1e23", "--cap=1e22")
  assert code == 0
  assert len(said["candidates"]) == 9
  assert said["next"] in said["candidates"]
  assert all(0 <= row["reduction"] <= 1 for row in said["candidates"])


def test_other_counts_of_parameters_are_fitted_for_comparison(points, capsys):
  _, said, _ = run(capsys, "fit", points, "--n=n,other", "--d=d")
  (law,) = said["laws"]
  assert law["other_conventions"]["other"]["alpha"] == pytest.approx(law["params"]["alpha"] / 0.97, rel=1e-3)
  code, _, err = run(capsys, "fit", points, "--n=n,othr", "--d=d")
  assert code == 2
  assert "no column 'othr' for --n" in err


def test_runs_are_weighted_by_their_standard_errors(points, tmp_path, capsys):
  """A run with a very large standard error does not change the fit; one with a small standard error does."""
  lines = Path(points).read_text().splitlines()
  fitted = []
  for stderr in (None, 1e9, 1e-3):
    wrong = [] if stderr is None else [f"3e7,3e7,3e10,9,{stderr}"]
    (tmp_path / "p.csv").write_text("\n".join([*lines, *wrong]) + "\n")
    code, said, _ = run(capsys, "fit", tmp_path / "p.csv", "--n=n", "--d=d", "--stderr=se")
    assert code == 0
    fitted.append(said["laws"][0]["params"])
  assert fitted[1] == pytest.approx(fitted[0], rel=1e-6)
  assert fitted[2] != pytest.approx(fitted[0], rel=1e-2)
  code, _, err = run(capsys, "fit", points, "--n=n", "--d=d", "--stderr=sse")
  assert code == 2
  assert "no column 'sse' for --stderr (did you mean 'se'?)" in err


@pytest.mark.slow
def test_nuts_covers_the_truth(points, capsys):
  code, said, _ = run(capsys, "forecast", points, "--n=n", "--d=d", "--at=1e21", "--intervals=nuts")
  assert code == 0
  (row,) = said["rows"]
  assert row["interval90"][0] < surface(row["N"], row["D"]) < row["interval90"][1]
  assert row["interval95"][0] < row["interval90"][0] < row["interval50"][0]


def test_two_recipes_make_a_page(points, tmp_path, capsys):
  table = np.genfromtxt(points, delimiter=",", names=True)
  saving = csv(tmp_path / "b.csv", "n,d,loss", table["n"], table["d"], surface(table["n"], table["d"], saved=2.0))
  page = tmp_path / "page.html"
  code, said, _ = run(capsys, "compare", points, saving, "--n=n", "--d=d", f"--report={page}")
  assert code == 0
  assert said["verdict"].startswith("B is worth 2")
  text = page.read_text()
  assert "Does the other recipe pay?" in text
  assert str(escape(said["verdict"])) in text
  assert "http" not in text.split("</script>")[-1]  # the page needs no network


def test_bad_rows_of_a_group_are_named_by_their_row_in_the_file(tmp_path, capsys):
  lines = ["size,ce,model", *(f"{i + 1},{2 / (i + 1)},a" for i in range(6)), "1,2,b", "2,nan,b"]
  (tmp_path / "g.csv").write_text("\n".join(lines) + "\n")
  code, _, err = run(capsys, "fit", tmp_path / "g.csv", "--x=size", "--loss=ce", "--group=model")
  assert code == 2
  assert "column 'ce', row 9: 'nan' is not a positive number" in err


@pytest.mark.parametrize(
  ("text", "flags", "message"),
  [
    ("size,ce\n1,2\n3,0\n", ("--x=size", "--loss=ce"), "column 'ce', row 3: 0 is not a positive number"),
    ("size,ce\n1,2\n", ("--x=sise", "--loss=ce"), "no column 'sise' for --x .did you mean 'size'"),
    ("size,ce\n1,2\n3,1\n", ("--x=size", "--loss=ce"), "3 parameters and 2 points"),
    ("size,ce\n1,2\n", ("--n=size", "--loss=ce"), "name the columns of at least two"),
    ("size,ce\n1,2\n", ("--x=size", "--loss=ce", "--law=powr"), "no law 'powr' .did you mean 'power'"),
    ("size,ce\n1,2\n", ("--x=size", "--loss=ce", "--law=routed"), "which column is N and E"),
    ("size,ce\n1,2\n", ("--x=size", "--loss=ce", "--at=0"), "--at: 0 is not a positive number"),
  ],
)
def test_bad_points_are_refused_in_one_line(tmp_path, capsys, text, flags, message):
  (tmp_path / "bad.csv").write_text(text)
  code, _, err = run(capsys, "fit", tmp_path / "bad.csv", *flags)
  assert code == 2
  assert len(err.strip().splitlines()) == 1
  with pytest.raises(UserError, match=message):
    raise UserError(err)


def test_warnings_about_points_are_given():
  x = np.array([1.0, 2.0, 2.0, 4.0])
  curve, losses = forms.LAWS["power_offset"], lambda *values: notes.Losses(np.array(values))
  (same,) = notes.examine(curve, [x], losses(4.0, 3.0, 2.9, 2.0), range(2, 6)).notes
  assert "rows 3 and 4 have the same scales and losses of 3 and 2.9" in same
  (rises,) = notes.examine(curve, [x[[0, 1, 3]]], losses(1.0, 2.0, 3.0), range(2, 5)).notes
  assert "rises with scale" in rises
  assert notes.examine(curve, [x[[0, 1, 3]]], losses(3.0, 2.0, 1.0), range(2, 5)).notes == []


def test_a_table_for_people_is_fitted_like_a_plain_one_and_says_how_it_was_read(points, tmp_path, capsys):
  plain = np.genfromtxt(points, delimiter=",", names=True)
  rows = [
    f"{n / 1e6:.6f}M;{d / 1e9:.6f}B;{loss:.6f}".replace(".", ",")
    for n, d, loss in zip(plain["n"], plain["d"], plain["loss"], strict=True)
  ]
  (tmp_path / "people.CSV").write_text("\n".join(["sizes of 2024", "", "n;d;loss", *rows, ""]), encoding="utf-16")
  expected = run(capsys, "fit", points, "--n=n", "--d=d")[1]["laws"][0]["params"]
  code, said, _ = run(capsys, "fit", tmp_path / "people.CSV", "--n=n", "--d=d")
  assert code == 0
  assert said["laws"][0]["params"] == pytest.approx(expected, rel=1e-3)
  assert [
    note for note in said["warnings"] if "column" in note or "line" in note or "UTF" in note or "sep" in note
  ] == [
    "the file is UTF-16",
    "cells are separated by semicolons",
    "the header is line 3; 1 line above it left out",
    "column 'n': decimal commas, M is 1e6",
    "column 'd': decimal commas, B is 1e9",
    "column 'loss': decimal commas",
  ]


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, capsys):
  bad = ["nan", "", "-1", "0", "inf", "diverged"]
  lines = ["size,ce", *(f"{x},{0.3 + 30 * x**-0.25}" for x in X), *(f"{i + 1}e9,{cell}" for i, cell in enumerate(bad))]
  (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
  asked = (tmp_path / "bad.csv", "--x=size", "--loss=ce")
  for verb in (("fit",), ("forecast", "--at=1e10")):
    code, _, err = run(capsys, verb[0], *asked, *verb[1:])
    assert code == 2
    assert "column 'ce', row 18: 'nan' is not a positive number (6 such rows; --skip-bad-rows leaves them out)" in err
    code, said, _ = run(capsys, verb[0], *asked, *verb[1:], "--skip-bad-rows")
    assert code == 0
    expected = "6 of 22 rows without positive numbers are left out (row 18, 19, 20, 21, 22, 23)"
    assert expected in said["warnings"]
  (tmp_path / "bad.csv").write_text("size,ce\n1,nan\n2,\n")
  code, _, err = run(capsys, "fit", *asked, "--skip-bad-rows")
  assert code == 2
  assert "--skip-bad-rows leaves no row" in err


def test_a_short_group_is_named_and_the_others_are_forecast_and_fitted(tmp_path, capsys):
  rows = [f"{model},{x},{0.3 + 30 * x**-0.25}" for model in ("long", "other") for x in X]
  (tmp_path / "g.csv").write_text("\n".join(["model,size,ce", *rows, "short,1000,3", "short,2000,2"]) + "\n")
  asked = (tmp_path / "g.csv", "--x=size", "--loss=ce", "--group=model")
  code, said, _ = run(capsys, "forecast", *asked, "--at=1e10")
  assert code == 0
  assert [row["group"] for row in said["rows"]] == ["long", "other"]
  assert any("curve short: left out, because it has 2 points" in note for note in said["warnings"])
  code, said, _ = run(capsys, "fit", *asked)
  assert code == 0
  assert [law["group"] for law in said["laws"]] == ["long", "other"]
  assert any(note.startswith("short: ") and "2 points" in note for note in said["warnings"])
  code, _, err = run(capsys, "forecast", tmp_path / "g.csv", "--x=size", "--loss=ce", "--group=modl", "--at=1e10")
  assert code == 2
  assert "no column 'modl' for --group (did you mean 'model'?); it has model, size, ce" in err


def grouped(tmp_path, points):
  """A CSV with the runs of two models, the second with 1.1 times the loss, and a third model of three runs."""
  header, *lines = Path(points).read_text().splitlines()
  rows = [line.split(",") for line in lines]
  worse = [[*row[:3], str(1.1 * float(row[3])), row[4]] for row in rows]
  groups = [("plain", rows), ("worse", worse), ("short", rows[:3])]
  text = [f"{name},{','.join(row)}" for name, part in groups for row in part]
  (tmp_path / "groups.csv").write_text("\n".join([f"model,{header}", *text]) + "\n")
  return tmp_path / "groups.csv"


def test_groups_of_runs_are_forecast_scored_fitted_and_designed_each(points, tmp_path, capsys):
  csv_, seal = grouped(tmp_path, points), tmp_path / "seal.json"
  asked = (csv_, "--n=n", "--d=d", "--group=model")
  code, said, _ = run(capsys, "forecast", *asked, "--at=4e9,4e11", "--at=1e22", f"--seal={seal}")
  assert code == 0
  assert [(row["group"], row["C"]) for row in said["rows"]] == [
    (name, pytest.approx(C)) for name in ("plain", "worse") for C in (9.6e21, 1e22)
  ]
  assert said["rows"][2]["predicted"] == pytest.approx(1.1 * said["rows"][0]["predicted"], rel=1e-3)
  assert [best["group"] for best in said["optimum"]] == ["plain", "worse"]
  assert set(said["forecasters"]) == {"plain", "worse"}
  assert any(note.startswith("short: ") and "3 points" in note for note in said["warnings"])
  truth = [surface(4e9, 4e11), 1.2 * surface(4e9, 4e11)]
  known = tmp_path / "truth.jsonl"  # in another format than the points
  rows = [{"model": m, "n": 4e9, "d": 4e11, "loss": loss} for m, loss in zip(("plain", "worse"), truth, strict=True)]
  known.write_text("\n".join(map(json.dumps, rows)) + "\n")
  code, scored, _ = run(capsys, "forecast", known, *asked[1:], "--score", seal)
  assert code == 0
  assert {name: total["coverage"]["interval90"] for name, total in scored["groups"].items()} == {"plain": 1, "worse": 0}
  for row, loss in zip(scored["rows"], truth, strict=True):
    low, high = np.log(row["interval90"])
    outside = max(low - np.log(loss), np.log(loss) - high, 0)
    assert row["interval_score"]["interval90"] == pytest.approx(high - low + 20 * outside)
    assert row["relative_error"] == pytest.approx(row["predicted"] / loss - 1)
  total = scored["total"]
  assert total["coverage"] == scored["coverage"]
  assert total["forecasts"] == 2
  assert total["relative_error"] == pytest.approx(np.mean([abs(row["relative_error"]) for row in scored["rows"]]))
  for level in ("interval50", "interval95"):
    mean = np.mean([row["interval_score"][level] for row in scored["rows"]])
    assert total["interval_score"][level] == pytest.approx(mean)


def test_fits_and_designs_of_groups_agree_with_the_forecast(points, tmp_path, capsys):
  """The best size for a budget is the same in fit, forecast and design, with the same interval."""
  asked = (grouped(tmp_path, points), "--n=n", "--d=d", "--group=model")
  forecasts = run(capsys, "forecast", *asked, "--at=1e22")[1]["optimum"]
  fitted = run(capsys, "fit", *asked, "--at=1e22")[1]
  assert [fact["group"] for fact in (*fitted["laws"], *fitted["optimum"])] == ["plain", "worse"] * 2
  code, designed, _ = run(capsys, "design", *asked, "--target=1e22")
  assert code == 0
  assert list(designed["groups"]) == ["plain", "worse"]
  assert any(note.startswith("short: ") for note in designed["warnings"])
  for best, optimum, proposal in zip(forecasts, fitted["optimum"], designed["groups"].values(), strict=True):
    for other in (optimum, proposal["target"]):
      for name in ("N", "D"):
        assert other[name] == best[name]
        assert other[f"{name}_interval90"] == best[f"{name}_interval90"]


def test_laws_of_repeated_data_forecast_if_the_unique_tokens_are_given(tmp_path, capsys):
  N, D, U = (x.ravel() for x in np.meshgrid([1e7, 4e7, 2e8], [1e9, 4e9, 2e10], [5e8, 2e9, 1e10]))
  law = forms.LAWS["data_constrained"]
  params = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.36, "rd": 15.0, "rn": 5.0}
  value = lambda *columns: fitting.predict(law, law.theta(params), columns)
  noise = 1e-3 * np.random.default_rng(0).normal(size=27)
  table = csv(tmp_path / "repeats.csv", "n,d,unique,loss", N, D, U, value(N, D, U) * np.exp(noise))
  asked = ("forecast", table, "--n=n", "--d=d", "--column=U=unique")
  code, said, _ = run(capsys, *asked, "--law=data_constrained", "--at=2e8,2e11,U=1e10", "--at=4e8,2e11,5e8")
  assert code == 0
  assert [row["columns"] for row in said["rows"]] == [{"U": 1e10}, {"U": 5e8}]
  assert [row["beyond"] for row in said["rows"]] == pytest.approx([10, 20])  # in compute
  for row in said["rows"]:
    low, high = row["interval90"]
    assert low < value(*(np.array([x]) for x in (row["N"], row["D"], row["columns"]["U"])))[0] < high
  assert said["rows"][1]["predicted"] > said["rows"][0]["predicted"]
  code, _, err = run(capsys, "forecast", table, "--n=n", "--d=d", "--law=data_constrained", "--at=2e8,2e11")
  assert code == 2
  assert "--law: data_constrained needs U: add --column U=COLUMN, and the values in --at" in err
  code, _, err = run(capsys, *asked, "--at=2e8,2e11")
  assert code == 2
  assert "--at: '2e8,2e11' is not N,D,U in this order, or with names such as U=5e9" in err


def test_runs_on_a_line_are_noted_by_every_verb(tmp_path, capsys):
  N = np.geomspace(1e7, 1e9, 12)
  line = csv(tmp_path / "line.csv", "n,d,loss", N, 20 * N, surface(N, 20 * N))
  for verb, option in (("fit", "--at=1e22"), ("forecast", "--at=4e9,4e11"), ("design", "--target=1e22")):
    code, said, _ = run(capsys, verb, line, "--n=n", "--d=d", option)
    assert code == 0
    assert any("close to the line D = 20 N" in note for note in said["warnings"])
    if verb == "forecast":  # the best sizes of the others may lie on the line
      assert any("is off the line of the runs (D = 20 N)" in note for note in said["warnings"])


HARD = {  # few or odd runs: budgets, sizes of each, and noise
  "two budgets of four": ((1e17, 1e18), 4, 3e-3),
  "eight noisy points": ((1e17, 1e18, 1e19, 1e20), 2, 0.02),
  "one budget": ((1e18,), 9, 3e-3),
  "six points": ((1e17, 1e18), 3, 3e-3),
  "fewer points than parameters": ((1e17, 1e18), 2, 3e-3),
  "one run far larger than all others": ((1e17, 3e17, 1e18, 3e18, 1e19), 4, 3e-3),
  "losses that are all the same": ((1e17, 3e17, 1e18, 3e18), 4, 3e-3),
}


@pytest.mark.parametrize("case", HARD)
def test_few_or_odd_runs_give_a_result_or_one_line(case, tmp_path, capsys):
  budgets, sizes, noise = HARD[case]
  C = np.repeat(budgets, sizes)
  N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(1 / 4, 4, sizes), len(budgets))
  D = C / 6 / N
  if case.startswith("one run"):
    N, D = np.append(N, 1e10), np.append(D, 1e12)
  loss = surface(N, D) * np.exp(noise * np.random.default_rng(0).normal(size=len(N)))
  loss = np.full_like(loss, 2.0) if case.startswith("losses") else loss
  table = csv(tmp_path / "p.csv", "n,d,loss", N, D, loss)
  for verb, option in (("forecast", "--at=1e9,1e11"), ("forecast", "--at=1e20"), ("design", "--target=1e20")):
    code = main.main([verb, table, "--n=n", "--d=d", option, "--json"])
    out, err = capsys.readouterr()
    if code == 2:
      assert len(err.strip().splitlines()) == 1
      assert case.startswith(("fewer", "losses"))
      continue
    assert code == 0
    said = json.loads(out)
    for row in said.get("rows", [{"predicted": said.get("predicted"), "interval90": (0, 99)}]):
      assert 0 < row["interval90"][0] <= row["predicted"] <= row["interval90"][1] < np.inf or verb == "design"
      assert row["predicted"] is not None


def test_isoflop_gives_no_size_for_another_budget(points, capsys):
  code = main.main(["fit", points, "--n=n", "--d=d", "--law=isoflop", "--at=1e22"])
  assert code == 2
  assert "--at: isoflop fits the budgets of the points only" in capsys.readouterr().err


def test_a_truth_that_is_a_mean_is_noted(tmp_path, capsys):
  known, seal = curve(tmp_path / "a.csv"), str(tmp_path / "seal.json")
  assert main.main(["forecast", known, "--x=size", "--loss=ce", "--at=2e9", "--seal", seal]) == 0
  later = csv(tmp_path / "later.csv", "size,ce", [2e9, 2e9], [0.45, 9.0])
  capsys.readouterr()
  assert main.main(["forecast", later, "--x=size", "--loss=ce", "--score", seal]) == 0
  said = "".join(capsys.readouterr())
  assert "a mean of several losses at 1 of 1 scales; they differ most from 0.45 to 9" in said


def test_best_sizes_of_groups_are_named(points, tmp_path, capsys):
  header, *rows = Path(points).read_text().splitlines()
  grouped = [f"{row},{group}" for group in ("dense", "sparse") for row in rows]
  (tmp_path / "groups.csv").write_text("\n".join([f"{header},kind", *grouped]))
  shown = ["fit", str(tmp_path / "groups.csv"), "--n=n", "--d=d", "--group=kind", "--at=1e22"]
  assert main.main(shown) == 0
  out = capsys.readouterr().out
  rows = [line.replace("│", " ").split() for line in out[out.index("compute-optimal") :].splitlines() if "│" in line]
  assert [row[:2] for row in rows if row[0] in ("dense", "sparse")] == [["dense", "forecast"], ["sparse", "forecast"]]
