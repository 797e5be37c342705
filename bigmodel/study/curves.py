"""The loss curves of the runs in a folder, in sets of runs that differ only in schedule, horizon and seeds.

The rate of every step follows from a run's config. It is that of `config.optim.lr`: the multiples of single parameters,
such as those of muP, are the same at every step and change no law.
"""

import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath

from bigmodel import models, optim, record, train
from bigmodel.config import Config, digest, flatten
from bigmodel.declarations import Value
from bigmodel.designs import branches
from bigmodel.errors import UserError
from bigmodel.laws.schedules import answers, forecast, groups, notation, runs
from bigmodel.laws.schedules.answers import ScheduleLaw
from bigmodel.laws.schedules.budgets import PerStep
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.reading import CurveSets
from bigmodel.optim import schedules
from bigmodel.study.leaderboard import SEEDS
from bigmodel.train.configs import identity, read_config

FREE = (*branches.HORIZON, "optim.schedule", *SEEDS)  # fields in which the runs of a set may differ
LOSSES = {"loss_train": runs.LOSS, "loss_eval": runs.EVALUATED}
FEWEST = 8  # evaluations of each run, with which curves are those of the held-out loss
CONVENTION = "flops_6nd"


def read(workdir: epath.PathLike, loss: str = "", convention: str = CONVENTION) -> CurveSets:
  """The curves of a study, of a run, or of the runs in the folders of a folder.

  Args:
    workdir: the folder.
    loss: `loss_eval` (evaluations on held-out data), `loss_train` (of single batches), or empty: the first where each
      run has `FEWEST` or more evaluations.
    convention: how the FLOPs of a step are counted.

  Raises `UserError` if the folder has no curves of this loss.
  """
  if loss not in ("", *LOSSES):
    raise UserError(f"--loss: {loss!r} is not a loss of runs; it is one of {', '.join(LOSSES)}")
  notes, sets = [], dict[str, list[tuple[epath.Path, Config]]]()
  for folder in _folders(epath.Path(workdir)):
    config = read_config(folder)
    if problem := _problem(folder, config):
      notes.append(f"run {folder.name} is left out: {problem}")
    else:
      sets.setdefault(digest(identity(flatten(config)), without=FREE), []).append((folder, config))
  if not sets:
    raise UserError(f"{workdir}: has no loss curves{f' ({notes[0]})' if notes else ' (no run has begun)'}")
  named = dict(sorted(zip(_labels([members[0][1] for members in sets.values()]), sets.values(), strict=True)))
  field = LOSSES[loss] if loss else _field(list(named.values()), notes)
  found = {label: _curves(members, field) for label, members in named.items()}
  per_step = {label: _per_step(members[0][1], convention) for label, members in named.items()}
  return CurveSets(found, notes, per_step, _sha256(found))


class ScheduleForecast(msgspec.Struct, frozen=True):
  """The forecast of the last loss under a schedule; `group` is the set of runs whose curves were fitted."""

  group: str
  schedule: str
  predicted: float
  interval90: tuple[float, float]


class Forecasts(msgspec.Struct, frozen=True):
  """What laws of the schedule say about the runs of a study."""

  rows: list[ScheduleForecast]
  laws: list[ScheduleLaw]
  notes: list[str]


def forecasts(workdir: epath.PathLike, texts: Sequence[str]) -> Forecasts:
  """Forecasts under schedules of the last losses of runs like those of a study; a note says what prevents one."""
  rows, laws, notes = list[ScheduleForecast](), list[ScheduleLaw](), list[str]()
  try:
    forecasters, notes = groups.fit("", read(workdir), skip=True)
  except UserError as error:
    return Forecasts([], [], [str(error)])
  for group, forecaster in forecasters.items():
    laws += answers.laws_of(forecaster, group)
    for text in texts:
      try:
        named = notation.parse(text, forecaster.units.peak, forecaster.warmup, "get_study: schedules")
        notes += forecast.check(forecaster, named.rates(), f"schedule {text}")
      except UserError as error:
        notes.append(str(error))
        continue
      prediction = forecaster.predict(named.rates(), np.array([named.steps]))
      low, high = (float(end[0]) for end in prediction.interval(0.9))
      rows.append(ScheduleForecast(group, str(named), float(prediction.predicted[0]), (low, high)))
  return Forecasts(rows, laws, notes)


def _folders(workdir: epath.Path) -> list[epath.Path]:
  """The folders of runs in the folder of a study, of a run or of several runs."""
  if (workdir / "config.json").exists():
    return [workdir]
  parent = workdir / "runs" if (workdir / "study.json").exists() else workdir
  folders = sorted(path.parent for path in parent.glob("*/config.json"))
  if not folders and parent == workdir:
    raise UserError(f"{workdir} holds neither a study nor a run, and none of its folders does")
  return folders


def _problem(folder: epath.Path, config: Config) -> str:
  """Why the curve of a run cannot be used, or ''."""
  ended = record.read(folder)
  if ended is not None and ended.status in ("diverged", "failed"):
    return f"it {'has ' if ended.status == 'diverged' else ''}{ended.status}"
  if config.train.stages:
    return "it has stages (config.train.stages)"
  if config.train.ramp:
    return "its batch size changes (config.train.ramp)"
  return "" if runs.has_rows(folder) else "it has no metrics yet"


def _labels(configs: Sequence[Config]) -> list[str]:
  """A text for each config: the fields in which they differ, with their values; '' if there is only one config."""
  flat = [identity(flatten(config)) for config in configs]
  names = sorted({name for each in flat for name in each} - {*FREE})
  differ = [name for name in names if len({repr(each.get(name)) for each in flat}) > 1]
  return [", ".join(f"{name}={_text(each.get(name))}" for name in differ) for each in flat]


def _text(value: Value | None) -> str:
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _field(sets: Sequence[Sequence[tuple[epath.Path, Config]]], notes: list[str]) -> str:
  """The field of metrics whose curves are fitted; adds a note that names it."""
  fewest = min(runs.evaluations(folder) for members in sets for folder, _ in members)
  if fewest >= FEWEST:
    notes.append(f"losses are those of evaluations on held-out data, of which each run has {fewest} or more")
    return runs.EVALUATED
  few = f"a run has {fewest} evaluations on held-out data (config.eval.every), and {FEWEST} are needed"
  notes.append(f"losses are those of single training batches: {few}")
  return runs.LOSS


def _curves(members: Sequence[tuple[epath.Path, Config]], field: str) -> list[Curve]:
  folders = [folder for folder, _ in members]
  return runs.once([runs.curve(folder, field, rates(config)) for folder, config in members], folders)


def rates(config: Config) -> np.ndarray:
  """The learning rate of every step of a run without stages [steps + 1]; that at 0 is 0."""
  steps = train.own_steps(config)
  shares = schedules.factor(config.optim.schedule, jnp.arange(steps), optim.hyperparameters(config, steps))
  return np.concatenate([[0.0], config.optim.lr * np.asarray(shares, np.float64)])


def _per_step(config: Config, convention: str) -> PerStep:
  tokens = train.batch_tokens(config)
  return PerStep(float(tokens), models.counts_of(config).flops_in(convention, tokens))


def _sha256(sets: dict[str, list[Curve]]) -> str:
  """The hash of the curves' names, losses and rates."""
  hashed = hashlib.sha256()
  for label, curves in sets.items():
    for curve in curves:
      hashed.update(f"{label} {curve.name}".encode())
      for values in (curve.steps, curve.loss, curve.rates):
        hashed.update(values.tobytes())
  return hashed.hexdigest()
