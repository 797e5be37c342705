"""Laws of loss curves for Python, as `bigmodel.fit_curves` offers them."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import arguments, notebook
from bigmodel.laws.notebook import Forecast
from bigmodel.laws.schedules import answers, budgets, decays, forecast, laws, notation, reading
from bigmodel.laws.schedules.budgets import PerStep
from bigmodel.laws.schedules.decays import DecayProposal
from bigmodel.laws.schedules.forecast import Forecaster
from bigmodel.laws.schedules.reading import Columns, CurveSets

log = logging.getLogger("bigmodel")
NAMES = ("curve", "step", "lr", "loss", "N", "D", "C")
LEAST_STEP = 1
POINTS_OF_A_LINE = 50  # steps at which a forecast is drawn


@dataclasses.dataclass(frozen=True)
class CurveLaws:
  """Laws of the schedule, fitted to the loss curves of runs with different schedules.

  `forecaster` has the curves, the laws with their parameters (`fits`) and `weights`. `per_step` are the tokens and the
  FLOPs of a step, as far as they are known.
  """

  forecaster: Forecaster
  per_step: PerStep = budgets.UNKNOWN

  def __repr__(self) -> str:
    names = ", ".join(curve.name for curve in self.forecaster.curves)
    parts = zip(self.forecaster.fits, self.forecaster.weights, strict=True)
    named = ", ".join(f"{weight:.0%} {fit.law.name}" for fit, weight in parts)
    return f"CurveLaws({named}; fitted to {len(self.forecaster.curves)} curves: {names})"

  @property
  def params(self) -> dict[str, dict[str, float]]:
    """The parameters of each law: rates are in units of the highest fitted one, steps of the longest curve."""
    return {fit.law.name: fit.params for fit in self.forecaster.fits}

  @arguments.named()
  def forecast(self, schedule: str | Sequence[float] | np.ndarray, at: Sequence[int] = ()) -> Forecast:
    """Forecasts the loss under a schedule that was not run.

    `schedule` is a text such as "cosine:steps=72000,end=3e-5", the path of a CSV with the columns `step` and `lr`, or
    the learning rates of the steps 1, 2, ... `at` are steps; by default the last one. In the result, `x` is the step.
    Raises `UserError` for a schedule whose effect the curves do not identify.
    """
    rates = self._rates(schedule)
    steps = [int(step) for step in at] or [len(rates) - 1]
    if wrong := [step for step in at if step != int(step) or step < LEAST_STEP]:
      raise UserError(f"at: {wrong[0]} is not a step, a whole number from 1 on")
    _log(forecast.check(self.forecaster, rates, "schedule"))
    _log(forecast.check_steps(self.forecaster, rates, steps, "at"))
    first = min(self.forecaster.curves, key=lambda curve: len(curve.rates)).warmup + 1
    line = np.unique(np.geomspace(min(first, len(rates) - 1), len(rates) - 1, POINTS_OF_A_LINE).astype(int)).tolist()
    curves = self.forecaster.curves
    points = {"x": np.concatenate([c.steps for c in curves]), "loss": np.concatenate([c.loss for c in curves])}
    weights = {fit.law.name: float(w) for fit, w in zip(self.forecaster.fits, self.forecaster.weights, strict=True)}
    rows, along = (answers.rows(self.forecaster, rates, each, "") for each in (steps, line))
    beyond = pl.Series("beyond", [step / self.forecaster.units.length for step in steps])
    table = notebook.table_of(rows, ("x",)).with_columns(beyond)
    return Forecast(table, pl.DataFrame(points), notebook.table_of(along, ("x",)), weights)

  @arguments.named()
  def propose_decay(
    self, steps: int | None = None, tokens: float | None = None, flops: float | None = None
  ) -> DecayProposal:
    """Proposes the decay of the learning rate with the lowest last loss, for one of the budgets.

    Tokens and FLOPs need curves with columns of them (D, C, or N and D), or runs of a folder. The result has the `best`
    decay and the `usual` ones of the same length, each with its loss and interval. Raises `UserError` if the curves
    do not identify what decays do.
    """
    given = [name for name, value in (("steps", steps), ("tokens", tokens), ("flops", flops)) if value is not None]
    if len(given) != 1:
      raise UserError(f"propose_decay: give one of steps, tokens and flops, not {' and '.join(given) or 'none'}")
    if tokens is not None:
      steps = budgets.steps("tokens", tokens, self.per_step.tokens, "those of a step are unknown; name the column of D")
    if flops is not None:
      steps = budgets.steps("flops", flops, self.per_step.flops, "those of a step are unknown; name the column of C")
    assert steps is not None
    return decays.propose(self.forecaster, steps, self.forecaster.warmup, [], per_step=self.per_step)

  def _rates(self, schedule: str | Sequence[float] | np.ndarray) -> np.ndarray:
    """The rate of every step, with that of step 0."""
    if isinstance(schedule, str):
      if Path(schedule).is_file():
        return reading.schedule(schedule, Columns())
      return notation.parse(schedule, self.forecaster.units.peak, self.forecaster.warmup, "schedule").rates()
    rates = np.asarray(schedule, np.float64)
    if rates.ndim != 1 or not rates.size or not np.isfinite(rates).all() or (rates < 0).any() or not rates.any():
      raise UserError("schedule: the learning rates of the steps 1, 2, ... are finite numbers from 0 on, not all 0")
    return np.concatenate([[0.0], rates])


def columns_of(columns: Mapping[str, str]) -> Columns:
  """The columns of a table of curves by the names that laws have for them."""
  for name in columns:
    if name not in NAMES:
      raise UserError(f"columns: {name!r} is not one of {', '.join(NAMES)}{nearest(name, NAMES)}")
  plain = {name: column for name, column in columns.items() if name not in "NDC"}
  return Columns(**plain, scales={name: column for name, column in columns.items() if name in "NDC"})


def table_of(curves: object) -> pl.DataFrame:
  """A table in memory: a DataFrame, or columns by name."""
  if isinstance(curves, pl.DataFrame):
    return curves
  if not isinstance(curves, Mapping):
    raise UserError(f"curves: a {type(curves).__name__} is not a polars DataFrame, columns by name, or a path")
  try:
    return pl.DataFrame(dict(curves))
  except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
    raise UserError(f"curves: not a table of columns of one length ({str(error).splitlines()[0]})") from error


def fit(read: CurveSets, group: str, chosen: Sequence[str]) -> CurveLaws:
  """The laws `chosen` (by default two) fitted to the curves of a group, which may be empty if there is only one."""
  if isinstance(chosen, str):
    raise UserError(f"laws: {chosen!r} is one text; give a list, [{chosen!r}]")
  _log(read.notes)
  if group not in read.groups and not (group == "" and len(read.groups) == 1):
    raise UserError(f"group: {group!r} is not one of the sets of runs: {'; '.join(map(repr, read.groups))}")
  name = group if group in read.groups else next(iter(read.groups))
  forecaster = forecast.fit(read.groups[name], laws.find(chosen, "laws"))
  _log(forecast.outlying(forecaster))
  return CurveLaws(forecaster, read.per_step[name])


def _log(notes: Sequence[str]) -> None:
  for note in notes:
    log.warning("curves: %s", arguments.in_python(note))
