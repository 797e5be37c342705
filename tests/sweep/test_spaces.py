"""Spaces give the points that they say; a leaderboard is means over seeds, with what the seeds can tell apart."""

import json

import numpy as np
import polars as pl
import pytest

from bigmodel import cli
from bigmodel.accounting import plain_counts
from bigmodel.files import UserError
from bigmodel.report import sweeps
from bigmodel.study import default_config
from bigmodel.sweep import leaderboard, packs, spaces
from bigmodel.sweep.designs import Grid
from bigmodel.train.run import Run

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
def test_points_lie_in_their_ranges_and_are_the_same_again(method):
  axes = {"optim.lr": spaces.Between(1e-4, 1e-1, log=True), "model.layers": spaces.Between(1, 4, integer=True)}
  found = cells(spaces.Space(axes, 32, method))
  assert found == cells(spaces.Space(axes, 64, method))[:32]  # more points are these, and others
  assert all(1e-4 <= one["optim.lr"] <= 1e-1 for one in found)
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
    ("optim.lr=log:0:1:3", "has no log"),
    ("optim.lr=log:a:b", "come LOW:HIGH"),
    ("optim.lr=log:0.1:1", "say how many values"),
  ],
)
def test_what_is_wrong_with_an_axis_is_said(axis, message):
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


def fake(run_id, loss, status="finished"):
  return {"run_id": run_id, "loss_eval": loss, "status": status, "params_total": 1, "tokens": 1, "seconds": 1.0}


def fake_sweep(losses, seeds=4, noise=0.01):
  rng = np.random.default_rng(0)
  planned, records = [], []
  for lr, loss in losses.items():
    for seed in range(seeds):
      run_id = f"{lr}-{seed}"
      planned.append({"run_id": run_id, "overrides": {"optim.lr": lr, "seed": seed, "data.seed": seed}})
      records.append(fake(run_id, loss + noise * rng.normal()))
  return planned, records


def test_a_leaderboard_knows_what_its_seeds_can_tell_apart():
  board = leaderboard.board(*fake_sweep({0.1: 2.0, 0.2: 2.002, 0.4: 2.5}))
  assert board["axes"] == ["optim.lr"]
  assert [cell["finished"] for cell in board["cells"]] == [4, 4, 4]
  assert board["cells"][-1]["overrides"] == {"optim.lr": 0.4}
  assert 0.005 < board["noise"] < 0.02
  assert board["resolution"] == pytest.approx(1.833 * board["noise"] * (2 / 4) ** 0.5, rel=1e-3)  # t of 9 degrees
  assert board["alike"] == 2


def test_the_best_rate_is_a_parabolas_and_its_interval_holds():
  """Losses along a parabola in the log of the rate, with its minimum between two of those tried."""
  truth, rates = 0.15, (0.025, 0.05, 0.1, 0.2, 0.4)
  inside = 0
  for trial in range(60):
    rng = np.random.default_rng(trial)
    planned, records = [], []
    for lr in rates:
      for seed in range(3):
        run_id = f"{lr}-{seed}"
        planned.append({"run_id": run_id, "overrides": {"optim.lr": lr, "seed": seed}})
        records.append(fake(run_id, 2 + 0.1 * np.log(lr / truth) ** 2 + 0.01 * rng.normal()))
    (row,) = leaderboard.board(planned, records)["learning_rates"]
    low, high = row["interval90"]
    inside += low <= truth <= high
    assert row["best"] == pytest.approx(truth, rel=0.3)
  assert 45 <= inside <= 60


def test_runs_without_a_loss_come_last_and_count_as_the_worst():
  planned, records = fake_sweep({0.1: 2.1, 0.2: 2.0, 0.4: 2.2}, seeds=1)
  planned.append({"run_id": "x", "overrides": {"optim.lr": 0.8}})
  records.append(fake("x", None, "diverged"))
  board = leaderboard.board(planned, records)
  assert board["cells"][-1]["loss"] is None
  assert board["noise"] is None
  losses = np.array(sorted(c["loss"] for c in board["cells"][:-1]))
  assert board["learning_rates"][0]["sensitivity"] == pytest.approx(
    np.append(losses, losses.max()).mean() - losses.min()
  )


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
  assert cli.main(["sweep", f"--config={path}", "--workdir", workdir, *axes, "--json"]) == 0
  board = json.loads(capsys.readouterr().out)["sweep"]
  assert len(board["cells"]) == 6
  assert {tuple(r["others"].items()) for r in board["learning_rates"]} == {
    (("model.width", 8),),
    (("model.width", 16),),
  }
  table = tmp_path / "runs.parquet"
  assert cli.main(["report", "--workdir", workdir, f"--table={table}", "--json"]) == 0
  capsys.readouterr()
  rows = pl.read_parquet(table)
  assert rows.shape[0] == 6
  assert set(rows["optim.lr"]) == {0.001, 0.01, 0.1}
  page = (tmp_path / "sweep" / "report.html").read_text()
  assert "Leaderboard" in page
  assert 'id="plot-rates"' in page
  assert 'id="plot-axes"' in page
  assert cli.main(["sweep", f"--config={path}", "--workdir", workdir]) == 2
  assert "say what to vary" in capsys.readouterr().err


def test_settings_that_follow_from_another_axis_are_none():
  rows = [
    {"train.tokens": tokens, "optim.warmup": 10 / tokens, "optim.lr": lr} for tokens in (100, 200) for lr in (0.1, 0.2)
  ]
  planned = [{"run_id": str(i), "overrides": row} for i, row in enumerate(rows)]
  board = leaderboard.board(planned, [fake(str(i), 2.0 + i) for i in range(4)])
  assert board["axes"] == ["train.tokens", "optim.lr"]


def test_cells_without_a_rate_and_seeds_that_agree_break_nothing():
  planned = [
    {"run_id": str(i), "overrides": {"seed": i % 2} | ({"optim.lr": 0.1 * i} if i > 1 else {})} for i in range(8)
  ]
  board = leaderboard.board(planned, [fake(str(i), 2.0) for i in range(8)])
  assert sweeps.draw(board, "loss")
  planned = [{"run_id": str(i), "overrides": {"seed": i % 2, "optim.lr": 0.1 + i // 2}} for i in range(6)]
  board = leaderboard.board(planned, [fake(str(i), 2.0) for i in range(6)])
  assert (board["noise"], board["resolution"], board["alike"]) == (0.0, 0.0, 3)


def test_what_differs_everywhere_decides_nothing():
  """A continuous axis has a value for each cell, and still says nothing of the others."""
  rows = [{"model.dropout": 0.01 * i, "optim.beta2": 0.9 + 0.01 * (i % 3), "optim.lr": 0.1 + i % 2} for i in range(6)]
  planned = [{"run_id": str(i), "overrides": row} for i, row in enumerate(rows)]
  board = leaderboard.board(planned, [fake(str(i), 2.0 + i) for i in range(6)])
  assert board["axes"] == ["model.dropout", "optim.beta2", "optim.lr"]
