"""Plans a whole study for hardware that this machine does not have."""

from bigmodel import models
from bigmodel.accounting import Counts
from bigmodel.config import Config
from bigmodel.designs.design import Overrides
from bigmodel.parallel.topology import Topology
from bigmodel.planner.plan import StudyPlan, plan_study
from bigmodel.study.description import Study
from bigmodel.study.prepare import plan_runs, with_horizon
from bigmodel.train.configs import with_overrides
from bigmodel.train.resolution import resolve_for_plan


def plan_for(config: Config, study: Study, where: Topology, prices: dict[str, float]) -> StudyPlan:
  """Plans a study for a topology: its runs one after another, each on all chips, and then its target.

  The largest run is compiled, the others are estimated. The critical path assumes that all fitted runs train at the
  same time, each on as many chips, and the target after them. `prices` are dollars per chip-hour.
  """

  def resolved(overrides: Overrides) -> Config:
    return resolve_for_plan(with_horizon(with_overrides(config, overrides)), where.count)

  def counts_of(overrides: Overrides) -> Counts:
    return models.counts_of(resolved(overrides))

  unique: dict[str, tuple[str, Overrides]] = {}
  for planned in plan_runs(study, counts_of):
    unique.setdefault(repr(sorted(planned.overrides.items())), (planned.role, planned.overrides))
  jobs = list(unique.values())
  if study.target is not None:
    sized = [(counts_of(size), size) for size in study.target.sizes]
    counts, largest = max(sized, key=lambda pair: pair[0].params_total)
    tokens = round(study.target.flops / counts.flops_in(study.design.convention, 1))
    jobs.append(("target", {**largest, "train.tokens": tokens, **study.settings(counts.params_total, tokens)}))
  sized_jobs = [(role, _label(overrides), resolved(overrides)) for role, overrides in jobs]
  return plan_study(study.name, sized_jobs, where, prices)


def _label(overrides: Overrides) -> str:
  return ", ".join(f"{name.split('.')[-1]} {value}" for name, value in overrides.items())
