"""The law lab as a command: laws of any CSV, forecasts that are kept and scored, bad rows named."""

import json

import numpy as np
import pytest

from bigmodel import cli
from bigmodel.files import UserError
from bigmodel.laws import table

X = np.geomspace(1e6, 1e9, 16)


def csv(path, header, *columns):
  rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
  path.write_text("\n".join([header, *rows]) + "\n")
  return str(path)


def run(capsys, *arguments):
  code = cli.main([*map(str, arguments), "--json"])
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


def test_a_forecast_is_sealed_kept_and_scored(tmp_path, capsys):
  points, seal = curve(tmp_path / "a.csv"), tmp_path / "seal.json"
  asked = ("forecast", points, "--x=size", "--loss=ce", "--at=2e9", f"--seal={seal}")
  code, said, _ = run(capsys, *asked)
  assert code == 0
  (row,) = said["rows"]
  truth = 0.3 + 30 * 2e9**-0.25
  assert row["interval90"][0] < truth < row["interval90"][1]
  code, _, err = run(capsys, *asked)
  assert code == 2
  assert "is there already" in err
  known = csv(tmp_path / "truth.csv", "size,ce", [2e9], [truth])
  code, scored, _ = run(capsys, "forecast", known, "--x=size", "--loss=ce", "--score", seal)
  assert code == 0
  assert scored["coverage"]["interval90"] == 1
  assert scored["rows"][0]["actual"] == truth
  seal.write_text(seal.read_text().replace(f"{row['predicted']}", "0.1"))
  code, _, err = run(capsys, "forecast", known, "--x=size", "--loss=ce", "--score", seal)
  assert code == 2
  assert "not what was sealed" in err


def test_forecasts_of_sizes_and_tokens_and_of_a_budget(tmp_path, capsys):
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
  true = lambda n, d: 1.7 + 400 / n**0.34 + 1500 / d**0.36
  noise = np.exp(1e-3 * np.random.default_rng(0).normal(size=36))
  points = csv(tmp_path / "p.csv", "n,d,loss", N, D, true(N, D) * noise)
  code, said, _ = run(capsys, "forecast", points, "--n=n", "--d=d", "--at=4e9,4e11", "--at=1e22")
  assert code == 0
  for row in said["rows"]:
    assert row["interval90"][0] < true(row["N"], row["D"]) < row["interval90"][1]
    assert row["interval50"][1] - row["interval50"][0] < row["interval90"][1] - row["interval90"][0]
  assert said["rows"][1]["C"] == pytest.approx(1e22)


@pytest.mark.parametrize(
  ("text", "flags", "message"),
  [
    ("size,ce\n1,2\n3,0\n", ("--x=size", "--loss=ce"), "column 'ce', row 3: 0 is not a positive number"),
    ("size,ce\n1,2\n", ("--x=sise", "--loss=ce"), "no column 'sise' for --x .did you mean 'size'"),
    ("size,ce\n1,2\n3,1\n", ("--x=size", "--loss=ce"), "3 parameters and 2 points"),
    ("size,ce\n1,2\n", ("--n=size", "--loss=ce"), "name the columns of at least two"),
    ("size,ce\n1,2\n", ("--x=size", "--loss=ce", "--law=powr"), "no law 'powr' .did you mean 'power'"),
    ("size,ce\n1,2\n", ("--x=size", "--loss=ce", "--law=routed"), "which column is N and E"),
  ],
)
def test_bad_points_are_refused_in_one_line(tmp_path, capsys, text, flags, message):
  (tmp_path / "bad.csv").write_text(text)
  code, _, err = run(capsys, "fit", tmp_path / "bad.csv", *flags)
  assert code == 2
  assert len(err.strip().splitlines()) == 1
  with pytest.raises(UserError, match=message):
    raise UserError(err)


def test_what_a_reader_should_know_of_points_is_said():
  x = np.array([1.0, 2.0, 2.0, 4.0])
  (same,) = table.warnings([x], np.array([4.0, 3.0, 2.9, 2.0]), range(2, 6))
  assert "rows 3 and 4 have the same scales and losses of 3 and 2.9" in same
  (rises,) = table.warnings([x[[0, 1, 3]]], np.array([1.0, 2.0, 3.0]), range(2, 5))
  assert "rises with scale" in rises
  assert table.warnings([x[[0, 1, 3]]], np.array([3.0, 2.0, 1.0]), range(2, 5)) == []
