"""Adaptive designs: a search proposes the same points for the same records; halving stops worse runs."""

import math

import pytest

from bigmodel import record, study
from bigmodel.accounting import plain_counts
from bigmodel.errors import Interrupted
from bigmodel.study import Between, Grid, Halving, Hyperband, Search, Study, When, rounds
from bigmodel.study import plan as plans
from bigmodel.study.plan import HERE
from bigmodel.train.results import Rung, read_rungs, write_rung
from bigmodel.train.run import write_provenance
from bigmodel.train.stop import StopRequest
from bigmodel.workers.groups import Group

pytest.importorskip("optuna")
AXES = {
  "optim.lr": Between(1e-4, 1.0, log=True),
  "optim.name": ("adamw", "muon"),
  "optim.momentum": When("optim.name", ("muon",), Between(0.8, 0.99)),
}


def rung(loss):
  return Rung(loss, loss)


def cost(point):
  return (math.log10(point["optim.lr"]) + 2) ** 2 + (0.5 if point["optim.name"] == "adamw" else 0.0)


def searched(design):
  known = []
  while points := design.ask(known):
    known += [(point, cost(point)) for point in points]
  return known


def test_a_search_finds_the_better_half_and_is_reproducible():
  design = Search(AXES, trials=40, at_once=8)
  known = searched(design)
  assert len(known) == 40
  assert known == searched(design)
  best, loss = min(known, key=lambda pair: pair[1])
  assert best["optim.name"] == "muon"
  assert loss < 0.05
  assert all(("optim.momentum" in point) == (point["optim.name"] == "muon") for point, _ in known)
  late = [cost(point) for point, _ in known[24:]]
  early = [cost(point) for point, _ in known[:8]]
  assert sum(late) / len(late) < sum(early) / len(early)
  # More trials extend these; a trial without a loss does no harm.
  assert searched(Search(AXES, trials=48, at_once=8))[:40] == known
  assert len(design.ask([(point, None) for point, _ in known[:8]])) == 8


def test_values_of_a_list_are_not_proposed_twice():
  design = Search({"model.width": (8, 16, 32)}, trials=10, at_once=2)
  known = []
  while points := design.ask(known):
    known += [(point, 1.0) for point in points]
  assert sorted(point["model.width"] for point, _ in known) == [8, 16, 32]


def test_rungs_and_survivors():
  halving = Halving(Grid({"optim.lr": (0.1,)}), first=1 / 9, factor=3)
  assert halving.rungs(90) == [10, 30]
  assert Halving(halving.design, 0.2, 2).rungs(80) == [10, 20, 40]
  assert halving.survivors({"a": 3.0, "b": 1.0, "c": math.inf, "d": 2.0}) == {"b", "d"}
  counts = lambda overrides: plain_counts(10, 20.0)
  assert {one.role for one in halving.runs(counts)} == {"halving"}


def test_brackets_of_hyperband_begin_at_different_rungs():
  class One:
    def __init__(self, number):
      self.run_id = f"{number:02d}"

  band = Hyperband(Grid({"optim.lr": (0.1,)}), first=1 / 9, factor=3)
  found = band.brackets([One(i) for i in range(22)])
  assert [bracket.rungs(90) for bracket, _ in found] == [[10, 30], [30], []]
  sizes = [len(members) for _, members in found]
  assert sum(sizes) == 22
  assert sizes == sorted(sizes, reverse=True)
  spent = []
  for (bracket, _), size in zip(found, sizes, strict=True):
    alive, before, steps = size, 0, 0
    for rung in [*bracket.rungs(90), 90]:
      steps += alive * (rung - before)
      alive, before = math.ceil(alive / 3), rung
    spent.append(steps)
  assert max(spent) < 2 * min(spent)


def test_halving_trains_few_runs_to_the_end_and_resumes(config, tmp_path, stop_at):
  config.train.update(steps=18, log_every=2)
  rates = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
  the_study = Study("halving", "?", Halving(Grid({"optim.lr": rates}), first=1 / 9), laws=())
  prepared = study.prepare(config, the_study, tmp_path)
  for looks in (2, 6):
    with pytest.raises(Interrupted, match="saved at step"):
      study.run_study(prepared, True, stop_at(looks))
  report = study.run_study(prepared, True, StopRequest())
  whole = {one["run_id"]: one for one in report["runs"]}
  assert sorted(one["steps"] for one in whole.values()) == [2] * 5 + [6] * 2 + [18]
  assert [one["status"] for one in whole.values()].count("finished") == 1
  assert all(one["loss_train"] is not None for one in whole.values())
  winner = next(one for one in whole.values() if one["status"] == "finished")
  assert winner["learning_rate"] >= 1e-3
  # A stopped run had a larger held-out loss than the runs that continued, at the rung where it stopped.
  rungs = {run_id: read_rungs(run) for run_id, run in prepared.runs.items()}
  losses = {run_id: {step: rung.loss_eval for step, rung in own.items()} for run_id, own in rungs.items()}
  stopped = [run_id for run_id, one in whole.items() if one["steps"] == 2]
  assert min(losses[i][2] for i in stopped) > max(x[2] for i, x in losses.items() if i not in stopped)
  assert losses[winner["run_id"]][6] == min(x[6] for x in losses.values() if 6 in x)
  assert report["sweep"]["cells"][0]["run_ids"] == [winner["run_id"]]
  assert "<b>1 run</b><span>finished, 7 stopped;" in (tmp_path / "report.html").read_text()


def test_groups_under_way_are_kept_when_the_parent_restarts(config, tmp_path):
  """Also if another command has begun a round. Workers hold leases on their names. Other runs are grouped anew."""
  config.train.update(steps=18)
  rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
  the_study = Study("halving", "?", Halving(Grid({"optim.lr": rates}), first=1 / 9), laws=())
  prepared = study.prepare(config, the_study, tmp_path)
  plan, seen = study.make_plan(prepared), []
  a, b, c, d, e = prepared.runs
  under_way = [Group((b, c), 0.0, 2), Group((a,), 0.0, 6)]  # of another rung
  rounds.write(tmp_path, plan, under_way)
  losses = dict(zip(prepared.runs, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
  write_rung(prepared.runs[d], 2, rung(losses[d]))
  for run in prepared.runs.values():
    write_provenance(run)

  def train(groups, alive):
    seen.append([([*group.run_ids], group.until) for group in groups])
    for group in groups:
      for run_id in group.run_ids:
        write_rung(alive[run_id], group.until, rung(losses[run_id]))
    if groups[0].until == 2:
      rounds.write(tmp_path, plan, [Group((b,), 0.0, 6)])

  members = list(prepared.runs.values())
  rounds.PausingRounds(plan, members, tmp_path, train, HERE, StopRequest()).run(the_study.design, "loss")
  assert seen[0][0] == ([b, c], 2)
  assert sorted(run_id for ids, _ in seen[0] for run_id in ids) == sorted([a, b, c, e])  # d has been there
  assert seen[1] == [([b], 6), ([a], 6)]


def test_a_search_resumes_with_the_points_that_it_had_proposed(config, tmp_path, stop_at):
  config.train.update(steps=6, log_every=2)
  design = Search({"optim.lr": Between(1e-4, 1e-1, log=True)}, trials=4, at_once=2)
  the_study = Study("search", "?", design, laws=())
  rates = []
  for name, stops in (("whole", ()), ("stopped", ((3, "saved at step"), (14, "stopped|saved")))):
    prepared = study.prepare(config, the_study, tmp_path / name)
    for looks, says in stops:
      with pytest.raises(Interrupted, match=says):
        study.run_study(prepared, True, stop_at(looks))
    study.run_study(prepared, True, StopRequest())
    plan = plans.read(tmp_path / name)
    rates.append([run.overrides["optim.lr"] for run in plan.runs])
    assert len(record.collect(tmp_path / name)) == 4
  assert rates[0] == rates[1]
