"""Commands for laws on points of real people: units, distances, outliers, seeds, accuracies and studies' folders."""

import json

import msgspec
import numpy as np
import pytest
from handmade import planned_run, record  # its folder is on the path of pytest

from bigmodel import record as records
from bigmodel.cli import main
from bigmodel.files import write_json
from bigmodel.laws import forecast
from bigmodel.planner.price import Calibration
from bigmodel.study import plan as plans
from bigmodel.study.folder import About

RNG = np.random.default_rng(0)
N, D = (x.ravel() for x in np.meshgrid(np.geomspace(4e6, 3e8, 5), np.geomspace(2e7, 2e10, 5)))
LOSS = (1.7 + 400 / N**0.34 + 400 / D**0.28) * np.exp(1e-3 * RNG.normal(size=25))
X = np.geomspace(1e3, 1e6, 10)
DIVERGED = np.where(np.arange(25) == 7, 11.0, LOSS)


def csv(path, header, *columns):
  rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
  path.write_text("\n".join([header, *rows]) + "\n")
  return str(path)


@pytest.fixture(autouse=True)
def _one_law(monkeypatch):
  """Forecasts by one law rather than by three, to save time."""
  monkeypatch.setattr(forecast, "LAWS", ("chinchilla",))


def run(capsys, *arguments):
  code = main.main([*map(str, arguments), "--json"])
  captured = capsys.readouterr()
  assert "Warning" not in captured.err
  return code, json.loads(captured.out) if captured.out else {}, captured.err


@pytest.fixture
def millions(tmp_path):
  return csv(tmp_path / "millions.csv", "params_M,tokens_B,flops,loss", N / 1e6, D / 1e9, 6 * N * D, LOSS)


NAMED = ("--n=params_M", "--d=tokens_B")


@pytest.mark.parametrize(
  ("command", "message"),
  [
    (("fit", *NAMED, "--at=1e20"), "--n=params_M*1e6"),
    (("fit", *NAMED, "--c=flops", "--at=1e20"), "C is 1e15 times 6 N D"),
    (("fit", "--n=params_M*1e6", "--d=tokens_B", "--at=1e20"), "--d=tokens_B*1e9"),
    (("fit", "--n=params_M", "--c=flops", "--at=1e20"), "--n=params_M*1e6"),
    (("fit", "--n=params_M*1e6", "--d=tokens_B*1e9", "--at=1e40"), "1e+40 lies 2.8e+20 times beyond the largest C"),
    (("fit", "--n=params_M*0", "--d=tokens_B"), "the factor of 'params_M*0' is not a finite number"),
    (("forecast", *NAMED, "--at=7e9,1.4e11"), "--d=tokens_B*1e9"),
    (("forecast", *NAMED, "--at=1e20"), "the units are in doubt"),
    (("forecast", *NAMED, "--reach=2"), "the units are in doubt"),
    (("forecast", "--n=params_M*1e6", "--d=tokens_B*1e9", "--at=7,140"), "times below the smallest"),
    (("design", *NAMED, "--target=1e21"), "the units are in doubt"),
    (("forecast", "--x=tokens_B", "--at=1e11"), "--x=tokens_B*1e9"),
  ],
)
def test_numbers_in_other_units_are_refused(millions, capsys, command, message):
  code, _, err = run(capsys, command[0], millions, *command[1:])
  assert code == 2
  assert len(err.strip().splitlines()) == 1
  assert message in err


def test_columns_are_converted_by_a_factor(millions, tmp_path, capsys):
  plain = csv(tmp_path / "plain.csv", "n,d,loss", N, D, LOSS)
  expected = run(capsys, "fit", plain, "--n=n", "--d=d", "--at=1e20")[1]
  converted = run(capsys, "fit", millions, "--n=params_M*1e6", "--d=tokens_B*1e9", "--at=1e20")[1]
  assert converted["optimum"][0]["N"] == pytest.approx(expected["optimum"][0]["N"], rel=1e-6)
  assert converted["optimum"][0]["beyond"] == pytest.approx(1e20 / (36e18))
  assert converted["warnings"] == []
  relative = run(capsys, "fit", millions, *NAMED)[1]  # exponents do not depend on units
  assert relative["laws"][0]["params"]["alpha"] == pytest.approx(expected["laws"][0]["params"]["alpha"], rel=1e-4)
  assert "in units of 1e6, by its name" in relative["warnings"][0]


def test_a_diverged_run_is_named_and_does_not_widen_intervals_in_any_command(tmp_path, capsys):
  clean = csv(tmp_path / "clean.csv", "n,d,loss", N, D, LOSS)
  path = csv(tmp_path / "diverged.csv", "n,d,loss", N, D, DIVERGED)
  columns, widths = ("--n=n", "--d=d"), []
  for points in (clean, path):
    code, said, _ = run(capsys, "forecast", points, *columns, "--at=7e9,1.4e11")
    assert code == 0
    low, high = said["rows"][0]["interval90"]
    widths.append(np.log(high / low))
    assert said["rows"][0]["beyond"] == pytest.approx(7e9 * 1.4e11 / 6e18)
  assert widths[1] < 1.3 * widths[0]
  notes = [said["warnings"]]
  notes.append(run(capsys, "fit", path, *columns)[1]["warnings"])
  notes.append(run(capsys, "design", path, *columns, "--target=1e21")[1]["warnings"])
  notes.append([note.removeprefix("A: ") for note in run(capsys, "compare", path, clean, *columns)[1]["warnings"]])
  assert all(each == notes[0] for each in notes)
  assert "row 9 with a loss of 11" in notes[0][0]


def test_an_accuracy_is_noted_and_converted(tmp_path, capsys):
  path = csv(tmp_path / "acc.csv", "x,acc", X, 1 - 2 * X**-0.3)
  ask = ("forecast", path, "--x=x", "--at=1e7")
  assert "use --loss=1-acc" in run(capsys, *ask, "--loss=acc")[1]["warnings"][0]
  _, said, _ = run(capsys, *ask, "--loss=1-acc")
  assert said["warnings"] == []
  assert said["rows"][0]["predicted"] == pytest.approx(2 * 1e7**-0.3, rel=1e-3)


def test_only_the_doubtful_group_is_noted(tmp_path, capsys):
  loss = 0.3 + 30 * X**-0.35
  groups = np.repeat(["a", "b"], 10)
  path = csv(tmp_path / "g.csv", "x,loss,model", np.tile(X, 2), np.append(loss, 1 / loss), groups)
  _, said, _ = run(capsys, "forecast", path, "--x=x", "--group=model", "--at=1e7")
  assert [note[:30] for note in said["warnings"]] == ["b: the loss rises with scale, "]


def test_a_far_forecast_is_made_if_it_is_forced(tmp_path, capsys):
  path = csv(tmp_path / "c.csv", "x,loss", X, 0.3 + 30 * X**-0.35)
  assert run(capsys, "forecast", path, "--x=x", "--at=1e16")[0] == 2
  code, said, _ = run(capsys, "forecast", path, "--x=x", "--at=1e16", "--force")
  assert code == 0
  assert said["rows"][0]["beyond"] == pytest.approx(1e10)
  assert "times beyond the largest x" in said["warnings"][0]


@pytest.fixture
def folder(tmp_path):
  """A study's folder with 25 finished runs."""
  path = tmp_path / "study"
  about = About("small", "Does it work?", ("chinchilla",), "loss", "flops_6nd", None, {})
  write_json(path / "study.json", msgspec.to_builtins(about))
  names = [f"run{i}" for i in range(25)]
  runs = tuple(planned_run(name, {"train.steps": i}) for i, name in enumerate(names))
  totals = plans.Totals(*[1] * len(plans.Totals.__struct_fields__))
  calibration = Calibration({"decoder": [(1.0, 1.0)]}, 1.0)
  plan = plans.Plan(
    study="small", planned_at="now", calibration=calibration, runs=runs, groups=(), target=None, total=totals
  )
  plans.write(path, plan)
  for name, params, tokens, loss in zip(names, N.astype(int).tolist(), D.astype(int).tolist(), DIVERGED, strict=True):
    counted = {"params_total": params, "params_active": params, "tokens": tokens, "flops_6nd": 6.0 * params * tokens}
    ended = record(run_id=name, loss_eval=float(loss), **counted)
    sha256 = records.result_sha256(records.to_json(ended))
    records.write(path / "runs" / name, msgspec.structs.replace(ended, result_sha256=sha256))
  return path


def test_forecast_and_design_take_the_folder_of_a_study(folder, tmp_path, capsys):
  path = csv(tmp_path / "same.csv", "n,d,loss", N.astype(int), D.astype(int), DIVERGED)
  ask = ("--at=7e9,1.4e11",)
  _, expected, _ = run(capsys, "forecast", path, "--n=n", "--d=d", *ask)
  code, said, err = run(capsys, "forecast", folder, *ask)
  assert (code, err) == (0, "")
  assert said["rows"][0]["predicted"] == pytest.approx(expected["rows"][0]["predicted"], rel=1e-9)
  assert "run run7 with a loss of 11" in said["warnings"][0]
  code, said, _ = run(capsys, "design", folder, "--target=1e21")
  assert code == 0
  assert said["beyond"] == pytest.approx(1e21 / 36e18, rel=1e-3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("forecast", "--n=n", "--at=1e20"), "--n: for the columns of a CSV; the points are the folder of a study"),
    (("forecast", "--drop-largest=1", "--at=1e20"), "--drop-largest: for the columns of a CSV"),
    (("forecast", "--at=1e20", "--score", "seal.json"), "--score: needs a CSV"),
    (("design", "--loss=ce", "--target=1e21"), "--loss: for the columns of a CSV"),
    (("fit", "--n=n", "--stderr=e", "--skip-bad-rows"), "--n, --stderr, --skip-bad-rows: for the columns of a CSV"),
    (("fit", "--at=1e20"), "--at, --law, --predict: a study has its own target and laws"),
  ],
)
def test_options_for_a_csv_are_refused_for_a_study(folder, capsys, options, message):
  code, _, err = run(capsys, options[0], folder, *options[1:])
  assert code == 2
  assert message in err


def test_a_corrupt_study_is_named(folder, capsys):
  (folder / "study.json").write_text("{}")
  (folder / "plan.json").unlink()
  for verb in (("fit", folder), ("forecast", folder, "--at=1e20"), ("design", folder, "--target=1e20"),
               ("status", f"--workdir={folder}")):  # fmt: skip
    code, _, err = run(capsys, *verb)
    assert code == 2
    assert "study.json: is corrupt" in err


def test_a_folder_without_a_study_is_refused(tmp_path, capsys):
  for verb, option in (("forecast", "--at=1e20"), ("design", "--target=1e20")):
    code, _, err = run(capsys, verb, tmp_path, option)
    assert code == 2
    assert "holds no study" in err
