"""What is learned from a set of runs, as frozen types with the fields of the JSON documents that hold it.

`to_json` makes the document, where facts leave the package: in `fits.json`, `report.json`, seals and `--json`. A field
that is `UNSET` is left out of it. N is parameters, D tokens and C FLOPs, as the convention of the points counts them.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.files import JsonObject

Number = int | float
Interval = tuple[float | None, float | None]  # None: the end is not finite
Params = dict[str, float | None]  # parameters of a law by name
Struct = TypeVar("Struct", bound=msgspec.Struct)


class Payoff(msgspec.Struct, frozen=True):
  """The change of the loss if the largest run had had more parameters or more data, by the forecaster."""

  what: str
  N: float
  D: float
  change: float
  interval90: Interval


class Backtest(msgspec.Struct, frozen=True):
  """Errors in ln loss of a law on the points of the largest scales, fitted without them."""

  points: int
  rms_log_error: float
  mean_log_error: float


class BudgetProfile(msgspec.Struct, frozen=True):
  """A parabola c0 + c1 x + c2 x^2 in x = ln N at the budget C; `inside`: it has a minimum within the trained sizes."""

  C: float
  coefficients: tuple[float | None, float | None, float | None]
  inside: bool


class LawFit(msgspec.Struct, frozen=True, kw_only=True):
  """A fitted law. Which of the optional fields are set depends on the law and on where the points come from."""

  name: str
  source: str | UnsetType = UNSET
  convention: str | UnsetType = UNSET  # how N and C are counted
  params: Params
  intervals: dict[str, Interval]  # 90%, of each parameter
  objective: float | UnsetType = UNSET
  flops_per_nd: float | UnsetType = UNSET
  points: int | UnsetType = UNSET
  payoff: list[Payoff] | UnsetType = UNSET
  starts_at_optimum: tuple[int, int] | UnsetType = UNSET  # (starts that reached the optimum, all starts)
  r2_largest_budget_left_out: float | UnsetType | None = UNSET
  other_conventions: dict[str, Params] | UnsetType = UNSET  # fitted again, with N counted otherwise
  caution: str | UnsetType | None = UNSET  # why the intervals are too narrow
  profiles: list[BudgetProfile] | UnsetType = UNSET
  ridges: dict[str, tuple[float, float]] | UnsetType = UNSET
  backtest: Backtest | UnsetType | None = UNSET
  group: str | UnsetType = UNSET


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
  """The compute-optimal size for a budget; `inside`: near enough to the sizes that were trained."""

  law: str  # by which it was found: "forecast" for the forecaster's laws together, "isoflop", or why there is none
  C: float
  N: float
  D: float
  N_interval90: Interval
  D_interval90: Interval
  loss: float
  inside: bool | UnsetType = UNSET  # not in folders of the first versions
  beyond: float | UnsetType = UNSET  # of fits to a CSV: C as a factor of that of the points, see `reach.times`
  group: str | UnsetType = UNSET


class NoiseFloor(msgspec.Struct, frozen=True):
  """The spread of the loss between runs of N parameters and D tokens that differ in their seeds only."""

  std: float
  losses: list[float]
  runs: int
  N: Number | UnsetType = UNSET  # N and D are not in folders of the first versions
  D: Number | UnsetType = UNSET


class RateScan(msgspec.Struct, frozen=True, kw_only=True):
  """Losses of runs that differ in their learning rate only, beside the rate that the study's rule gives them."""

  N: Number
  D: Number
  rates: list[float]
  losses: list[float]
  rule: float
  best: float | None
  at_edge: bool  # the best rate is the lowest or the highest
  rule_excess: float | None  # loss at the rule's rate, above the lowest
  without_loss: int  # runs that diverged or failed


class Fits(msgspec.Struct, frozen=True, kw_only=True):
  """The laws, optima, noise floor and scans of a study: `fits.json`."""

  laws: list[LawFit]
  optimum: list[Optimum]
  points: int
  convention: str
  noise_floor: NoiseFloor | None = None
  scans: list[RateScan] = []
  warnings: list[str] = []  # what is doubtful about the runs
  inputs_sha256: str = ""  # of the records and laws that it was made from


class TriedLaw(msgspec.Struct, frozen=True):
  """A candidate of `--law=auto`: its root mean square error in backtests, over all and by hidden column."""

  name: str
  error: float
  errors: dict[str, float]
  weight: float


class Predicted(msgspec.Struct, frozen=True):
  """The loss at one row of the places to forecast; the interval follows from the errors of the backtests."""

  columns: dict[str, float]
  loss: float
  interval90: Interval
  group: str = ""
  beyond: float | UnsetType = UNSET  # as a factor of that of the points, see `any_columns.beyond`


class Choice(msgspec.Struct, frozen=True, kw_only=True):
  """What `--law=auto` tried, best first, and the error of the combination. Errors are in ln loss unless `plain`."""

  tried: list[TriedLaw]
  error: float
  backtests: int
  plain: bool
  left_out: list[str]
  predicted: list[Predicted] = []


class TableFits(msgspec.Struct, frozen=True, kw_only=True):
  """The laws and optima of a CSV."""

  laws: list[LawFit]
  optimum: list[Optimum]
  warnings: list[str] = []
  choice: Choice | UnsetType = UNSET


class ForecastMethod(msgspec.Struct, frozen=True):
  """How a forecast was made: the forecaster, the weights of its laws and, for `laws.forecast`, its `Spread`."""

  name: str
  version: int
  weights: dict[str, float]
  noise: float | UnsetType = UNSET
  discrepancy: float | UnsetType = UNSET
  origins: int | UnsetType = UNSET


class OffOptimum(msgspec.Struct, frozen=True):
  """A size that is `times` the best one: its loss, and the share of the compute that reaches it at the best size."""

  times: float
  N: float
  D: float
  loss: float
  compute: float


class BestSize(msgspec.Struct, frozen=True, kw_only=True):
  """The best size for a budget C within limits, by the forecaster; what limits leave over of C is not spent."""

  C: float
  N: float
  D: float
  loss: float
  spent: float
  N_interval90: Interval | None
  D_interval90: Interval | None
  off: list[OffOptimum]
  group: str | UnsetType = UNSET


class LeastCompute(msgspec.Struct, frozen=True, kw_only=True):
  """The least compute that reaches a loss, by the forecaster; None if no compute does."""

  loss: float
  C: float | None
  N: float | None
  D: float | None
  reached_in: float  # share of the draws of the laws in which the loss is reached at all
  C_interval90: Interval | None
  N_interval90: Interval | None
  D_interval90: Interval | None
  group: str | UnsetType = UNSET
  beyond: float | UnsetType = UNSET  # C as a factor of that of the points, see `reach.times`


class ForecastRow(msgspec.Struct, frozen=True, kw_only=True):
  """The forecast of the loss at N, D and C or, for curves, at x; earlier versions did not seal every interval."""

  group: str | None
  N: Number | UnsetType = UNSET
  D: Number | UnsetType = UNSET
  C: Number | UnsetType = UNSET
  x: Number | UnsetType = UNSET
  columns: dict[str, float] | UnsetType = UNSET  # further scales, by the names that laws have for them
  predicted: float
  interval50: tuple[float, float] | UnsetType = UNSET
  interval80: tuple[float, float] | UnsetType = UNSET
  interval90: tuple[float, float] | UnsetType = UNSET
  interval95: tuple[float, float] | UnsetType = UNSET
  N_interval90: Interval | UnsetType | None = UNSET  # of the best size, where the row is that of a budget
  D_interval90: Interval | UnsetType | None = UNSET
  off: list[OffOptimum] | UnsetType = UNSET
  beyond: float | UnsetType = UNSET  # the scale as a factor of that of the points, see `reach.times`


class TableForecast(msgspec.Struct, frozen=True, kw_only=True):
  """Forecasts from a CSV, as `bigmodel forecast` prints and seals them."""

  points: str  # path of the CSV, or the folder of a study
  points_sha256: str  # of the CSV, or of the results of the study's runs
  forecaster: ForecastMethod | UnsetType = UNSET  # the first version had one forecaster and did not name it
  forecasters: dict[str, ForecastMethod] | UnsetType = UNSET  # in place of it, of each group
  rows: list[ForecastRow]
  optimum: list[BestSize] | UnsetType = UNSET
  reached: list[LeastCompute] | UnsetType = UNSET
  warnings: list[str] | UnsetType = UNSET  # earlier versions sealed none


class Target(msgspec.Struct, frozen=True, kw_only=True):
  """The run that tests the forecast of a study."""

  N: Number
  D: Number
  C: Number
  run_id: str
  overrides: Mapping[str, Value] | UnsetType = UNSET  # of the study's config


class FailedRun(msgspec.Struct, frozen=True):
  """A run that was planned for the fit and has no loss."""

  run_id: str
  status: str
  error: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
  """The forecast of a study's target: `forecasts/target.json`."""

  law: str | UnsetType = UNSET  # of the first version, which had no forecaster
  forecaster: ForecastMethod | UnsetType = UNSET
  convention: str
  predicted: float
  interval50: tuple[float, float] | UnsetType = UNSET  # earlier versions sealed only one interval
  interval80: tuple[float, float] | UnsetType = UNSET
  interval90: tuple[float, float]
  interval95: tuple[float, float] | UnsetType = UNSET
  parts: dict[str, float | None]  # standard deviations in ln loss that make up the interval, and the distance in ln C
  target: Target
  fitted: list[str] = []  # result_sha256 of the records it was made from
  failed: list[FailedRun] | UnsetType = UNSET
  diverged: list[FailedRun] | UnsetType = UNSET


class Score(msgspec.Struct, frozen=True):
  """A forecast compared with the truth; None while the run has no loss."""

  actual: float | None = None
  inside: bool | None = None  # whether the truth lies in the 90% interval
  log_error: float | None = None  # ln(forecast / truth)


class ScoredRow(ForecastRow, frozen=True, kw_only=True):
  """A row of a sealed forecast with its truth."""

  sealed_at: str
  actual: float  # the mean of runs that repeat
  inside: dict[str, bool]  # whether the truth lies in the interval of each level
  log_error: float  # ln(forecast / truth)
  relative_error: float  # forecast / truth - 1
  interval_score: dict[str, float]  # of each level, in ln loss


class ScoreTotal(msgspec.Struct, frozen=True, kw_only=True):
  """Scores of several forecasts: means over them, of absolute values for `relative_error`."""

  forecasts: int
  relative_error: float
  rmsle: float  # root of the mean squared error in ln loss
  coverage: dict[str, float]  # share of the truths that lie in the interval of each level
  interval_score: dict[str, float]


def to_json(facts: msgspec.Struct) -> JsonObject:
  """The JSON document of facts, without fields that are `UNSET`; numbers that are not finite become None."""
  values = {name: getattr(facts, name) for name in facts.__struct_fields__}
  return {name: _plain(value) for name, value in values.items() if value is not UNSET}


def from_json(document: object, kind: type[Struct], where: str) -> Struct:
  """The facts of a JSON document; raises `UserError`, whose message begins with `where`, if a field is wrong."""
  try:
    return msgspec.convert(document, kind)
  except msgspec.ValidationError as error:
    raise UserError(f"{where}: {error}") from error


def finite(facts: Struct) -> Struct:
  """The facts as they are read back from their document: with None for numbers that are not finite."""
  return msgspec.convert(to_json(facts), type(facts))


def _plain(value: object) -> object:
  if isinstance(value, msgspec.Struct):
    return to_json(value)
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, float | np.floating):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, np.integer):
    return int(value)
  return value
