"""The parts of `report.json` that figures draw, as types; a document of an earlier version has fewer fields."""

from collections.abc import Mapping

import msgspec

from bigmodel.laws.facts import Forecast, LawFit, NoiseFloor, Number, Optimum, RateScan


class Run(msgspec.Struct, frozen=True, kw_only=True):
  """A run of the study: the fields of its record that figures draw, and its roles in the plan."""

  run_id: str
  status: str
  roles: list[str]
  params_total: int
  params_non_embedding: int
  params_active: int
  tokens: Number
  flops_6nd: Number
  flops_6nd_non_embedding: Number
  flops_chinchilla: Number
  flops_exact: Number
  loss_eval: float | None
  loss_eval_stderr: float | None
  metrics: dict[str, float | None]


class Cell(msgspec.Struct, frozen=True):
  """Runs of a sweep that differ in their seeds only: what they change of the config, their mean loss and its spread."""

  overrides: Mapping[str, object]
  loss: float | None
  std: float | None


class BestRate(msgspec.Struct, frozen=True):
  """The best learning rate of one setting of the other axes; see `study.leaderboard.learning_rates`."""

  others: Mapping[str, object]
  best_tried: float
  loss: float
  best: float | None
  interval90: tuple[float, float] | None
  flat: bool


class Leaderboard(msgspec.Struct, frozen=True):
  """The settings of a sweep, the best first."""

  axes: list[str]
  cells: list[Cell]
  learning_rates: list[BestRate]


class ScoredForecast(Forecast, frozen=True, kw_only=True):
  """The sealed forecast with the truth, if the target has been run."""

  actual: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
  """A study with its runs, fits and forecast."""

  convention: str
  unit: str  # what is counted as D: tokens or examples
  loss: str  # the measured quantity, for axes
  metrics: list[str]
  runs: list[Run]
  sweep: Leaderboard | None
  laws: list[LawFit]
  forecast: ScoredForecast | None
  noise_floor: NoiseFloor | None
  optimum: list[Optimum]
  scans: list[RateScan]
