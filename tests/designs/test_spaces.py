"""Spaces return points in their ranges, and a sweep over them trains and ranks runs."""

import json

import numpy as np
import polars as pl
import pytest

from bigmodel.accounting import plain_counts
from bigmodel.cli import main
from bigmodel.designs import spaces
from bigmodel.designs.grids import Grid
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train.run import Run
from bigmodel.workers import packs

COUNTS = lambda overrides: plain_counts(10, 20.0)


def cells(design):
  return [one.overrides for one in design.runs(COUNTS)]


def test_axes_of_the_command_are_lists_and_ranges():
  design = spaces.of_arguments(["optim.lr=log:0.001:0.1:3", "model.width=8,16", "optim.name=adamw,lion"], 0, "sobol", 1)
  found = cells(design)
  assert len(found) == 12
  assert {one["optim.lr"] for one in found} == {0.001, 0.01, 0.1}
  assert {one["model.width"] for one in found} == {8, 16}
  assert {one["optim.name"] for one in found} == {"adamw", "lion"}
  whole = spaces.of_arguments(["model.width=lin:8:32:4"], 0, "sobol", 1)
  assert [one["model.width"] for one in cells(whole)] == [8, 16, 24, 32]


def test_seeds_repeat_every_point():
  found = cells(spaces.Repeated(Grid({"optim.lr": (0.1, 0.2)}), 3))
  assert [(one["optim.lr"], one["seed"], one["data.seed"]) for one in found] == [
    (lr, seed, seed) for lr in (0.1, 0.2) for seed in range(3)
  ]


def test_zipped_axes_go_together_and_are_equally_long():
  assert cells(spaces.Zipped({"a": (1, 2), "b": (3, 4)})) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  with pytest.raises(UserError, match="different lengths"):
    cells(spaces.Zipped({"a": (1, 2), "b": (3,)}))


@pytest.mark.parametrize("method", spaces.METHODS)
def test_points_are_in_their_ranges_and_reproducible(method):
  axes = {"optim.lr": spaces.Between(1e-4, 1e-1, log=True), "model.layers": spaces.Between(1, 4, integer=True)}
  found = cells(spaces.Space(axes, 32, method))
  assert found == cells(spaces.Space(axes, 64, method))[:32]  # more points extend fewer points
  assert all(1e-4 <= float(one["optim.lr"]) <= 1e-1 for one in found)
  assert {one["model.layers"] for one in found} == {1, 2, 3, 4}
  decades = np.histogram(np.log10([one["optim.lr"] for one in found]), bins=3, range=(-4, -1))[0]
  assert decades.min() >= (10 if method == "sobol" else 4)  # a Sobol sequence leaves no gap


def test_an_axis_may_depend_on_another():
  axes = {
    "optim.name": ("adamw", "muon"),
    "optim.momentum": spaces.When("optim.name", ("muon",), spaces.Between(0.9, 0.99)),
  }
  found = cells(spaces.Space(axes, 32))
  assert {one["optim.name"] for one in found} == {"adamw", "muon"}
  assert all(("optim.momentum" in one) == (one["optim.name"] == "muon") for one in found)


@pytest.mark.parametrize(
  ("axis", "message"),
  [
    ("optim.lr", "write NAME=VALUE"),
    ("optim.lr=log:1:0.1:3", "is not below"),
    ("optim.lr=log:0:1:3", "a log axis needs low > 0"),
    ("optim.lr=log:a:b", "must be followed by LOW:HIGH"),
    ("optim.lr=log:0.1:1", "give the number of values"),
  ],
)
def test_invalid_axes_are_refused_with_the_reason(axis, message):
  with pytest.raises(UserError, match=message):
    spaces.of_arguments([axis], 0, "sobol", 1)


def test_values_of_rules_are_traced_and_their_patterns_are_not(tmp_path):
  config = default_config()
  key = lambda **optim: packs.program_key(Run(_with(config, optim), tmp_path))
  assert key(rates=("embedding=0.5",)) == key(rates=("embedding=2",))
  assert key(rates=("embedding=0.5",)) != key(rates=("output=0.5",))
  assert key(average=0.9) == key(average=0.99)
  assert key(average=0.9) != key(average=0.0)


def _with(config, optim):
  config = config.copy_and_resolve_references()
  config.optim.update(optim)
  return config


def test_a_sweep_of_axes_trains_and_ranks(corpus_dir, tmp_path, capsys):
  path = tmp_path / "config.py"
  path.write_text(
    "from bigmodel.study import default_config\n"
    "def get_config(arg=None):\n"
    "  config = default_config()\n"
    f"  config.data.update(name='text_files', path={str(corpus_dir / '*.jsonl')!r}, heldout_fraction=0.2, context=32)\n"
    "  config.model.update(width=16, layers=1, head_size=8)\n"
    "  config.train.update(steps=10, batch_size=8, log_every=5)\n"
    "  config.eval.tokens = 2048\n"
    "  return config\n"
  )
  workdir = str(tmp_path / "sweep")
  axes = ["--axis", "optim.lr=0.001,0.01,0.1", "--axis", "model.width=8,16"]
  assert main.main(["sweep", f"--config={path}", "--workdir", workdir, *axes, "--json"]) == 0
  board = json.loads(capsys.readouterr().out)["sweep"]
  assert len(board["cells"]) == 6
  assert {tuple(r["others"].items()) for r in board["learning_rates"]} == {
    (("model.width", 8),),
    (("model.width", 16),),
  }
  table = tmp_path / "runs.parquet"
  assert main.main(["report", "--workdir", workdir, f"--table={table}", "--json"]) == 0
  capsys.readouterr()
  rows = pl.read_parquet(table)
  assert rows.shape[0] == 6
  assert set(rows["optim.lr"]) == {0.001, 0.01, 0.1}
  page = (tmp_path / "sweep" / "report.html").read_text()
  assert "Leaderboard" in page
  assert 'id="plot-rates"' in page
  assert 'id="plot-axes"' in page
  assert main.main(["sweep", f"--config={path}", "--workdir", workdir]) == 2
  assert "name fields to vary" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    (["optim.lr=1,2", "seed=1,2", "optim.lr=3"], "--axis optim.lr: is given twice; write all of its values in one"),
    (["optim.lr=log:1:inf:3"], "axis optim.lr: 1.0, inf: not finite"),
    (["optim.lr=lin:nan:1:3"], "axis optim.lr: nan, 1.0: not finite"),
    (["optim.lr=lin:0:1:inf"], "--axis optim.lr=lin:0:1:inf: lin must be followed by LOW:HIGH or LOW:HIGH:COUNT"),
    (["optim.lr=lin:0:1:1e12"], "1,000,000,000,000 values; at most 100,000"),
    (["optim.lr=lin:0:1:-3"], "give the number of values"),
  ],
)
def test_axes_that_make_no_sense_are_refused(axes, message):
  with pytest.raises(UserError) as caught:
    spaces.of_arguments(axes, 0, "sobol", 1)
  assert message in str(caught.value)
