"""What is learned from loss curves, as frozen types with the fields of their JSON documents."""

import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np

from bigmodel.laws.facts import ForecastMethod, ForecastRow, Params, TableForecast
from bigmodel.laws.forecast import LEVELS
from bigmodel.laws.schedules import forecast
from bigmodel.laws.schedules.forecast import Forecaster


class ScheduleLaw(msgspec.Struct, frozen=True):
  """A fitted law of the schedule.

  Rates are in units of `peak` and steps in units of `length`. `backtest` is its error in ln loss on fitted curves that
  were left out, `weight` its share of the forecast.
  """

  group: str
  name: str
  weight: float
  backtest: float
  params: Params
  peak: float
  length: float


class CurveForecast(TableForecast, frozen=True, kw_only=True):
  """Forecasts of a loss under a schedule; `x` of a row is the step."""

  schedule: str
  laws: list[ScheduleLaw]
  curves: list[str]  # that were fitted


@dataclasses.dataclass(frozen=True)
class Source:
  """The file or folder of curves, and its hash."""

  path: str
  sha256: str


def laws_of(forecaster: Forecaster, group: str) -> list[ScheduleLaw]:
  """The laws of a forecaster, with their weights."""
  units = forecaster.units
  return [
    ScheduleLaw(group, fit.law.name, float(weight), fit.backtest, dict(fit.params), units.peak, units.length)
    for fit, weight in zip(forecaster.fits, forecaster.weights, strict=True)
  ]


def rows(forecaster: Forecaster, rates: np.ndarray, steps: Sequence[int], group: str) -> list[ForecastRow]:
  """Forecasts at steps of a schedule, with intervals at all levels."""
  prediction = forecaster.predict(rates, np.asarray(steps))
  ends = [prediction.interval(level) for level in LEVELS]
  made = []
  for i, step in enumerate(steps):
    at50, at80, at90, at95 = ((float(low[i]), float(high[i])) for low, high in ends)
    made.append(
      ForecastRow(
        group=group,
        x=step,
        predicted=float(prediction.predicted[i]),
        interval50=at50,
        interval80=at80,
        interval90=at90,
        interval95=at95,
        beyond=step / forecaster.units.length,
      )
    )
  return made


def assemble(
  source: Source, schedule: str, forecasters: dict[str, Forecaster], found: list[ForecastRow], notes: list[str]
) -> CurveForecast:
  """The document of a forecast from curves."""
  laws = [law for group, forecaster in forecasters.items() for law in laws_of(forecaster, group)]
  first = next(iter(forecasters.values()))
  weights = {law.name: law.weight for law in laws if law.group == laws[0].group}
  return CurveForecast(
    points=source.path,
    points_sha256=source.sha256,
    forecaster=ForecastMethod(forecast.NAME, forecast.VERSION, weights),
    rows=found,
    warnings=notes,
    schedule=schedule,
    laws=laws,
    curves=[curve.name for curve in first.curves],
  )
