"""The public API: the examples of all docstrings run; ids of runs on arrays depend on the arrays' content."""

import doctest
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import bigmodel
from bigmodel import api, study
from bigmodel.errors import UserError
from bigmodel.laws import arguments

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in bigmodel.__all__ if inspect.isfunction(getattr(bigmodel, name))]


@pytest.fixture(scope="module")
def folder(corpus_dir, tmp_path_factory):
  """The inputs of the examples: the quickstart's config, a study of two small decoders, and the folder of one."""
  root = tmp_path_factory.mktemp("api")
  shutil.copytree(ROOT / "configs", root / "configs")
  config = bigmodel.default_config()
  config.data.update(name="text_files", path=str(corpus_dir / "*.jsonl"), heldout_fraction=0.2, context=32, repeat=True)
  config.model.update(layers=1, heads=2)
  config.train.update(batch_size=8, steps=2)
  config.eval.tokens = 512
  sizes = [{"model.width": width, "model.head_size": width // 2} for width in (8, 12)]
  small = study.Study("small", "Which is better?", study.Listed(sizes), laws=())
  bigmodel.run_study(config, small, root / "runs" / "quickstart")
  (root / "runs" / "decoder").symlink_to(next((root / "runs" / "quickstart" / "runs").iterdir()))
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    yield root


def arrays_config():
  config = bigmodel.default_config("mlp")
  config.model.hidden = (4,)
  config.train.update(steps=2, batch_size=16)
  return config


def arrays(seed=0):
  inputs = 100 + 10 * np.random.default_rng(seed).normal(size=(80, 3))
  return inputs, (inputs[:, 0] > 100).astype(int)


def test_every_docstring_example_runs(folder):
  parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
  names = {"bigmodel": bigmodel, "np": np}
  for name in sorted(FUNCTIONS, key=lambda name: inspect.getsourcelines(getattr(api, name))[1]):
    docstring = inspect.getdoc(getattr(bigmodel, name)) or ""
    example = parser.get_doctest(docstring, names, name, inspect.getsourcefile(api), 0)
    assert example.examples, name
    example.globs = names
    runner.run(example, clear_globs=False)
    assert not runner.summarize(verbose=False).failed, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_explain_every_argument(name):
  function = getattr(bigmodel, name)
  docstring = inspect.getdoc(function) or ""
  for parameter in inspect.signature(function).parameters:
    assert f"\n  {parameter}: " in docstring, parameter
  assert "Returns:" in docstring or inspect.signature(function).return_annotation in (None, "None")
  assert all(annotation != inspect.Parameter.empty for annotation in inspect.get_annotations(function).values())


def test_the_package_is_lazy_typed_and_lists_its_names():
  loaded = "import sys, bigmodel; dir(bigmodel); print('jax' in sys.modules or 'polars' in sys.modules)"
  output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
  assert output.strip() == "False"
  assert set(bigmodel.__all__) <= set(dir(bigmodel))
  assert not [name for name in bigmodel.__all__ if (Path(bigmodel.__file__).parent / name).exists()]
  with pytest.raises(AttributeError, match="trian_run"):
    _ = bigmodel.trian_run
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
  assert "py.typed" in settings["package-data"]["bigmodel"]
  assert Path(bigmodel.__file__).with_name("py.typed").exists()


def test_a_study_is_a_table_with_roles_and_varied_fields(folder):
  runs = bigmodel.load_study("runs/quickstart")
  assert runs["model.width"].to_list() == [8, 12]
  assert runs["roles"].to_list() == [["fit"], ["fit"]]
  assert runs["loss_eval"].is_finite().all()
  assert "metric.perplexity" in runs.columns
  with pytest.raises(UserError, match=r"no run has the role 'fitt' \(did you mean 'fit'\?\)"):
    bigmodel.load_study("runs/quickstart", role="fitt")
  with pytest.raises(UserError, match="holds no study"):
    bigmodel.load_study("runs/decoder")


def test_run_ids_depend_on_the_content_of_arrays(tmp_path):
  ids = []
  for seed in (0, 0, 1):
    config = arrays_config()
    bigmodel.use_arrays(config, *arrays(seed))
    ids.append(bigmodel.train_run(config, tmp_path / str(len(ids))).record.run_id)
  assert ids[0] == ids[1] != ids[2]


def test_predictions_agree_with_evaluation_in_the_units_of_the_targets(tmp_path):
  inputs, _ = arrays()
  targets = 1000 + 50 * inputs[:, 0]
  config = bigmodel.default_config("linear", "regression")
  config.optim.lr = 0.1
  config.train.update(steps=60, batch_size=32)
  bigmodel.use_arrays(config, inputs, targets)
  model = bigmodel.train_run(config, tmp_path)
  predicted = bigmodel.predict(model, inputs)
  assert predicted.shape == (80,)
  assert np.std(predicted - targets) < 0.3 * np.std(targets)
  assert np.array_equal(bigmodel.predict(model, inputs[:1]), predicted[:1])
  with pytest.raises(UserError, match=r"inputs have the shape \(80, 2\)"):
    bigmodel.predict(model, inputs[:, :2])


def test_arrays_that_cannot_be_data_are_refused(cache, tmp_path):
  inputs, targets = arrays()
  config = arrays_config()
  with pytest.raises(UserError, match="80 inputs and targets of shape"):
    bigmodel.use_arrays(config, inputs, targets[:3])
  with pytest.raises(UserError, match="are not finite"):
    bigmodel.use_arrays(config, inputs * np.inf, targets)
  with pytest.raises(UserError, match="this config is for text"):
    bigmodel.use_arrays(bigmodel.default_config(), inputs, targets)
  bigmodel.use_arrays(config, inputs, targets + 1)
  shutil.rmtree(cache / "arrays" / f"given-{config.data.path.removeprefix('cached:')}")
  with pytest.raises(UserError, match=r"call bigmodel\.use_arrays with the arrays again"):
    bigmodel.train_run(config, tmp_path)


@pytest.fixture(scope="module")
def surface():
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
  noise = np.exp(0.005 * np.random.default_rng(0).normal(size=len(N)))  # without it intervals have no width
  return {"params": N, "tokens": D, "loss": (1.7 + 400 / N**0.34 + 400 / D**0.28) * noise}


COLUMNS = {"N": "params", "D": "tokens"}


def test_forecasts_equal_those_of_the_command(surface, tmp_path, capsys):
  import json

  from bigmodel.cli import main

  path = tmp_path / "points.csv"
  pl.DataFrame(surface).write_csv(path)
  command = f"forecast {path} --n=params --d=tokens --law=chinchilla --at=1e10,1e12 --at=1e23 --json"
  assert main.main(command.split()) == 0
  rows = json.loads(capsys.readouterr().out)["rows"]
  for points in (surface, pl.DataFrame(surface), path):
    forecast = bigmodel.forecast(points, [(1e10, 1e12), 1e23], COLUMNS, "loss", laws=["chinchilla"])
    assert forecast.table["N"].to_list() == pytest.approx([row["N"] for row in rows], rel=1e-6)
    assert forecast.table["predicted"].to_list() == pytest.approx([row["predicted"] for row in rows], rel=1e-9)
    assert forecast.table["low90"].to_list() == pytest.approx([row["interval90"][0] for row in rows], rel=1e-9)
  assert forecast.weights == pytest.approx({"chinchilla": 1.0}, rel=1e-12)  # a sum over fits


def test_a_plot_has_points_a_line_through_them_and_forecasts(surface):
  forecast = bigmodel.forecast(surface, [1e23], COLUMNS, "loss", laws=["chinchilla"])
  band, line, runs, asked = bigmodel.plot(forecast).to_dict()["data"]
  assert len(runs["x"]) == 25
  assert max(line["x"]) == pytest.approx(1e23)
  assert asked["y"][0] == pytest.approx(line["y"][-1])
  assert max(band["y"]) > max(line["y"])


def test_every_group_of_curves_is_forecast_and_drawn():
  x = np.tile(np.geomspace(1e4, 1e8, 10), 2)
  curves = {"x": x, "error": np.repeat([0.1, 0.2], 10) + x**-0.3, "model": ["a"] * 10 + ["b"] * 10}
  forecast = bigmodel.forecast(curves, [1e9], {"x": "x"}, "error", group="model")
  assert forecast.table["group"].to_list() == ["a", "b"]
  assert len(bigmodel.plot(forecast).to_dict()["data"]) == 8


def test_every_group_of_runs_is_forecast_by_itself_and_drawn(surface, caplog):
  """As without the others; a group that is too short is named."""
  parts = {"plain": surface, "worse": {**surface, "loss": 1.1 * surface["loss"]}}
  parts["short"] = {name: column[:3] for name, column in surface.items()}
  table = pl.concat([pl.DataFrame(part).with_columns(model=pl.lit(name)) for name, part in parts.items()])
  forecast = bigmodel.forecast(table, [(1e10, 1e12)], COLUMNS, "loss", "model")
  alone = bigmodel.forecast(surface, [(1e10, 1e12)], COLUMNS, "loss")
  assert forecast.table["group"].to_list() == ["plain", "worse"]
  assert forecast.table.columns == ["group", *alone.table.columns]
  assert forecast.table[:1].drop("group").equals(alone.table)
  assert forecast.table[1, "predicted"] == pytest.approx(1.1 * forecast.table[0, "predicted"], rel=1e-3)
  assert sum(forecast.weights.values()) == pytest.approx(sum(alone.weights.values())) == pytest.approx(1)
  assert len(bigmodel.plot(forecast).to_dict()["data"]) == 8
  assert "short: law chinchilla has 5 parameters and 3 points" in caplog.text


def test_fit_weights_by_standard_errors_and_takes_any_law(surface):
  worse = {**surface, "loss": surface["loss"] * np.where(np.arange(25) % 5 == 0, 1.2, 1.0)}
  worse["error"] = np.where(np.arange(25) % 5 == 0, 10.0, 0.001)
  fit = bigmodel.fit(worse, "chinchilla", COLUMNS, "loss", stderr="error")
  assert fit.params["alpha"] == pytest.approx(0.34, abs=0.02)
  low, high = fit.intervals()["alpha"]
  assert low <= fit.params["alpha"] <= high
  assert re.fullmatch(r"Fit\(chinchilla, 25 points, A=[^\n]*, beta=0\.\d+\)", repr(fit))
  assert bigmodel.fit(surface, "power_offset", {"x": "params"}, "loss").law.names == ("a", "b", "c")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"columns": {"N": "param", "D": "tokens"}}, r"points: no column 'param' for N \(did you mean 'params'\?\)"),
    ({"at": [-1.0]}, "at: -1.0 is not a positive number"),
    ({"at": []}, "at: is empty"),
    ({"laws": ["chinchila"]}, "laws: no law 'chinchila'"),
    ({"laws": ["auto"]}, "laws: 'auto' is only for the command"),
    ({"columns": {**COLUMNS, "group": "model"}}, "columns: 'group' is not a scale .*: group='model'"),
    ({"columns": {**COLUMNS, "U": "unique"}}, "'U' is not one of N, D, C and x; .* are only for the command"),
    ({"points": {"params": [1e6], "tokens": [1e9], "loss": [-1.0]}}, r"negative in all rows; loss='loss\*-1' negates"),
    ({"points": [1, 2]}, "points: a list is not a polars DataFrame"),
    (
      {"points": {"params": [1.0], "tokens": [1.0, 2.0], "loss": [1.0]}},
      "points: not a table of columns of one length",
    ),
    ({"group": "parms"}, r"points: no column 'parms' for group \(did you mean 'params'\?\)"),
  ],
)
def test_forecast_names_the_invalid_argument(surface, change, message):
  given = {"points": surface, "at": [1e23], "columns": COLUMNS, "loss": "loss", **change}
  with pytest.raises(UserError, match=message):
    bigmodel.forecast(**given)


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (
      "--n='size (M)*1e6' converts; exchange --d",
      "columns={'N': 'size (M)*1e6'} converts; exchange columns['D']",
    ),
    ("row 2: no value (1 such rows; --skip-bad-rows leaves them out)", "row 2: no value (1 such rows; leave them out)"),
    ("unless --warmup=STEPS gives another (--n=a*1e6)", "unless warmup=STEPS gives another (columns={'N': 'a*1e6'})"),
    ("add --column U=unique, or --loss=1-accuracy", "add columns={'U': 'unique'}, or loss='1-accuracy'"),
  ],
)
def test_messages_name_arguments_and_not_options(message, expected):
  assert arguments.in_python(message) == expected


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: bigmodel.forecast({"N": [1.0]}, at=1e17), "at: 1e.17 is not a list"),  # pyright: ignore
    (lambda: bigmodel.forecast({"N": [1.0]}, at=["x"]), "at: 'x' is not a positive number"),  # pyright: ignore
    (lambda: bigmodel.forecast({"N": [1.0]}, at=[1e17], laws="chinchilla"), "laws: 'chinchilla' is one text"),
    (lambda: bigmodel.fit({"N": [1.0]}, law="auto"), "law: 'auto' is only for the command"),
    (lambda: bigmodel.fit_curves({"step": [1.0]}), r"no column 'curve' for columns\['curve'\]"),
    (lambda: bigmodel.load_config("configs/quickstart.py", {"train.steps": 5}), "overrides: give a list"),
  ],
)
def test_arguments_of_a_wrong_kind_are_refused(call, message):
  with pytest.raises(bigmodel.UserError, match=message):
    call()
