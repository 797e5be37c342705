"""Stages: a run that trains the same parameters for several tasks, one after another.

`train.stages` lists the stages before the config's task, each as overrides in one string,
such as 'task.name=contrastive_divergence task.layer=0 optim.lr=0.01 train.tokens=60000'.
"""

import dataclasses

from ml_collections import ConfigDict

from bigmodel import config as configs
from bigmodel import optim, tasks
from bigmodel.config import Config, require
from bigmodel.data.fields import has_numeric_targets
from bigmodel.train import configs as run_configs
from bigmodel.train import horizon

ALLOWED = ("task.", "optim.", "train.tokens", "train.steps", "data.tokens", "data.examples")


@dataclasses.dataclass(frozen=True)
class Stage:
  """Steps `first` to `stop` of a run, with the config that applies to them.

  Each batch size of a ramp is a stage, too; the optimizer's state and the schedule continue across these.
  """

  config: Config
  first: int
  stop: int
  begin: int  # the step at which its schedule and its optimizer's state began
  horizon: int  # steps of the schedule, counted from `begin`
  before: int = 0  # rows seen from step `begin` to step `first`


def of(config: Config) -> list[Stage]:
  """The stages of a run; the last one is that of the config's task."""
  last = config.copy_and_resolve_references()
  last.train.stages = ()
  stages, first = [], 0
  for text in config.train.stages:
    changed = _changed(last, text)
    stages.append(Stage(changed, first, first + horizon.own_steps(changed), first, horizon.own_steps(changed)))
    first = stages[-1].stop
  phases = horizon.phases(last)
  last.train.ramp = ()
  for phase in phases:
    with_rows = last.copy_and_resolve_references()
    with_rows.train.batch_size = phase.rows
    stages.append(Stage(with_rows, first + phase.first, first + phase.stop, first, phases[-1].stop, phase.before))
  return stages


def at(config: Config, step: int) -> Stage:
  """The stage that wrote a run's state after `step` steps: at the end of a stage, that stage and not the next."""
  stages = of(config)
  return next((stage for stage in stages if step <= stage.stop), stages[-1])


def steps_of(config: Config) -> int:
  """The number of steps of a run, all stages together."""
  return of(config)[-1].stop if config.train.stages else horizon.own_steps(config)


def _changed(base: Config, text: str) -> Config:
  changed = base.copy_and_resolve_references()
  has_horizon, given = False, set[str]()
  for item in text.split():
    name, equals, value = item.partition("=")
    require(bool(equals), f"config.train.stages: {item!r} is not field=value")
    require(name.startswith(ALLOWED), f"config.train.stages: {name} is not one of {', '.join(ALLOWED)}")
    parsed = configs.parse_value(value)
    if name == "task.name":
      changed.task = ConfigDict(tasks.defaults(value, changed.data.kind))
    elif name in ("train.tokens", "train.steps"):
      has_horizon = True
      changed.train.update(tokens=0, steps=0)
    if name == "optim.name":
      run_configs.set_optimizer(changed, value)
    else:
      configs.override(changed, name, parsed)
    given.add(name)
  # A stage may inherit fields that its optimizer does not have, such as beta1.
  optim.reset_without_effect(changed.optim, keep={name.removeprefix("optim.") for name in given})
  where = f"config.train.stages: {text!r}"
  require(
    has_horizon and changed.train.tokens + changed.train.steps > 0, f"{where} sets neither train.tokens nor train.steps"
  )
  require(not changed.task.get("balanced"), f"{where}: set class_weights; balanced is for the last stage only")
  numbers = has_numeric_targets(changed.task), has_numeric_targets(base.task)
  require(numbers[0] == numbers[1], f"{where}: stages cannot mix regression and classification")
  return changed
