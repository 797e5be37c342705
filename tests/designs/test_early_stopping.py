"""Early stopping: hopeless settings of a sweep are stopped, with their forecast, and the best is kept."""

import math

import msgspec
import numpy as np
import pytest

from bigmodel import record, study
from bigmodel.cli import main
from bigmodel.errors import Interrupted, UserError
from bigmodel.laws import last_loss
from bigmodel.study import EarlyStopping, Grid, Listed, Study, early_stopping
from bigmodel.train import results
from bigmodel.train.results import Rung, write_rung
from bigmodel.train.run import write_provenance
from bigmodel.train.stop import StopRequest

STEPS = 80
PAUSES = np.arange(10, 90, 10)
RATES = tuple(0.01 * (i + 1) for i in range(6))
ENDS = (2.0, 2.02, 2.1, 2.4, 3.0, 4.0)  # last losses of these rates


def curve(end, at):
  """A loss that falls from 1.5 times its end as a power law."""
  return end * (1 + 0.5 * (np.asarray(at) / 10.0) ** -1.5)


def test_a_forecast_follows_the_run_and_its_reference():
  ours, reference = curve(3.0, PAUSES), curve(2.0, PAUSES)
  for count in (3, 5, 7):
    ahead = last_loss.forecast(PAUSES, ours[:count], reference)
    assert ahead.low(0.99) < ahead.low(0.95) < ahead.low(0.5) == pytest.approx(ahead.predicted)
    assert ahead.low(0.95) < ours[-1] < ahead.predicted * math.exp(2 * ahead.sd)
    scaled = last_loss.forecast(PAUSES, 7 * ours[:count], reference)
    assert (scaled.predicted, scaled.sd) == pytest.approx((7 * ahead.predicted, ahead.sd))
  rough = ours[:5] * (1, 1, 1, 1.3, 1)  # nothing but the roughness differs
  assert last_loss.forecast(PAUSES, rough, reference).sd > 2 * last_loss.forecast(PAUSES, ours[:5], reference).sd
  falls_late = np.array([*reference[:-1], 0.5])
  assert last_loss.forecast(PAUSES, ours[:5], falls_late).low(0.95) < 0.5 * ours[4]


def sweep(config, folder, seeds=(0,), rates=RATES):
  """The runs of a sweep over rates, before any of them trains."""
  config.train.steps = STEPS
  listed = Listed([{"optim.lr": lr, "seed": seed, "data.seed": seed} for lr in rates for seed in seeds])
  prepared = study.prepare(config, Study("s", "?", EarlyStopping(listed), laws=()), folder)
  for run in prepared.runs.values():
    write_provenance(run)
  return list(prepared.runs.values())


def trainer(order, limit=math.inf):
  """Stands for training: runs follow `curve`; raises `Interrupted` instead of the call number `limit`."""

  def train(alive, until):
    if len(order) >= limit:
      raise Interrupted("stopped")
    order.append((tuple(alive), until))
    for run in alive.values():
      loss = float(curve(ENDS[RATES.index(run.config.optim.lr)] + 0.01 * run.config.seed, until or STEPS))
      if record.read(run.folder) is None and until:
        write_rung(run, until, Rung(0.5, loss))
      elif record.read(run.folder) is None:
        ended = results.unevaluated(run, run.steps)
        results.end(run, msgspec.structs.replace(ended, status="finished", steps=run.steps, loss_eval=loss))

  return train


def outcome(runs):
  ended = [record.read(run.folder) for run in runs]
  return {(one.learning_rate, one.seed): (one.status, one.steps, one.stopped_by) for one in ended}


def test_hopeless_settings_are_stopped_and_the_best_is_kept(config, tmp_path):
  runs = sweep(config, tmp_path)
  order = []
  early_stopping.run(EarlyStopping(Grid({})), runs, "loss", trainer(order))
  ended = outcome(runs)
  assert [ended[rate, 0][0] for rate in RATES] == ["finished"] * 3 + ["stopped"] * 3
  assert [ended[rate, 0][1] for rate in RATES] == [80, 80, 80, 60, 30, 30]  # the first may stop at the third pause
  for rate in RATES[3:]:
    _, steps, why = ended[rate, 0]
    assert why
    assert (why.steps, why.level, why.best) == (STEPS, 0.95, pytest.approx(curve(2.0, STEPS)))
    assert why.best < why.low < why.predicted
    low = last_loss.forecast(PAUSES, curve(ENDS[RATES.index(rate)], PAUSES[steps >= PAUSES]), curve(2.0, PAUSES))
    assert why.low == pytest.approx(low.low(0.95))
  assert [until for alive, until in order if len(alive) == 1][:5] == [40, 50, 60, 70, 0]  # the best, alone


@pytest.mark.parametrize("limit", range(1, 14, 3))
def test_a_sweep_that_was_interrupted_equals_a_whole_one(limit, config, tmp_path):
  whole, parts = sweep(config, tmp_path / "whole"), sweep(config, tmp_path / "parts")
  early_stopping.run(EarlyStopping(Grid({})), whole, "loss", trainer([]))
  with pytest.raises(Interrupted):
    early_stopping.run(EarlyStopping(Grid({})), parts, "loss", trainer([], limit))
  early_stopping.run(EarlyStopping(Grid({})), parts, "loss", trainer([]))
  assert outcome(whole) == outcome(parts)


def test_all_seeds_of_a_setting_are_stopped_at_once(config, tmp_path):
  runs = sweep(config, tmp_path, seeds=(0, 1, 2))
  early_stopping.run(EarlyStopping(Grid({})), runs, "loss", trainer([]))
  ended = outcome(runs)
  for rate in RATES:
    assert len({ended[rate, seed] for seed in range(3)}) == 1
  why = ended[RATES[5], 2][2]
  assert why
  assert why.best == pytest.approx(curve(2.01, STEPS), rel=1e-3)  # the mean over the best's seeds


def test_a_grown_sweep_resumes_what_is_no_longer_hopeless_and_keeps_the_rest(config, tmp_path):
  first = sweep(config, tmp_path, rates=RATES[3:])
  early_stopping.run(EarlyStopping(Grid({})), first, "loss", trainer([]))
  assert outcome(first)[RATES[3], 0][0] == "finished"  # there was nothing better
  runs = sweep(config, tmp_path)
  early_stopping.run(EarlyStopping(Grid({})), runs, "loss", trainer([]))
  assert outcome(runs)[RATES[0], 0][0] == "finished"
  assert outcome(runs)[RATES[3], 0][0] == "finished"


def test_a_sweep_stops_early_and_its_leaderboard_shows_the_forecast(config, tmp_path, stop_at):
  """Also if the command is stopped between. The runs are those of the sweep without early stopping."""
  config.train.update(steps=16, log_every=4)
  rates = (1e-2, 3e-3, 1e-6)
  the_study = Study("s", "?", EarlyStopping(Grid({"optim.lr": rates}), 0.8), laws=())
  reports = []
  for name in ("whole", "stopped"):
    prepared = study.prepare(config, the_study, tmp_path / name)
    if name == "stopped":
      with pytest.raises(Interrupted):
        study.run_study(prepared, True, stop_at(9))
    reports.append(study.run_study(prepared, True, StopRequest()))
  plain = study.prepare(config, Study("s", "?", Grid({"optim.lr": rates}), laws=()), tmp_path / "plain")
  assert plain.runs.keys() == prepared.runs.keys()
  whole, again = ([cell | {"seconds": 0} for cell in report["sweep"]["cells"]] for report in reports)
  assert whole == again
  assert [cell["overrides"]["optim.lr"] for cell in whole][-1] == 1e-6
  assert whole[-1]["stopped"] == 1
  assert whole[-1]["stopped_at"] < 16
  assert whole[0]["loss"] < whole[-1]["forecast_low"] < whole[-1]["forecast"]
  assert whole[0]["forecast"] is None
  page = (tmp_path / "whole" / "report.html").read_text()
  assert "forecast to end at" in page
  assert "Settings with a forecast were stopped early" in page


def test_bad_early_stopping_is_refused(config, tmp_path, capsys):
  with pytest.raises(UserError, match=r"level 1\.5 of early stopping is not in \[0\.5, 1\)"):
    study.prepare(config, Study("s", "?", EarlyStopping(Grid({"optim.lr": RATES}), 1.5), laws=()), tmp_path)
  lengths = EarlyStopping(Grid({"train.steps": (40, 80)}))
  with pytest.raises(UserError, match="EarlyStopping compares runs of equal horizons, not of 40 and 80 steps"):
    study.prepare(config, Study("s", "?", lengths, laws=()), tmp_path)
  source = "from bigmodel.study import default_config\nget_config = lambda arg: default_config()\n"
  (tmp_path / "c.py").write_text(source)
  asked = ["sweep", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}", "--early-stopping=0.95"]
  assert main.main(asked) == 2
  assert "--early-stopping: need --axis" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()
