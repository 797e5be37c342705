"""The description of a study, as `get_study(config)` of a config file returns it."""

import dataclasses
from collections.abc import Sequence

from bigmodel.designs.design import Design, Overrides, Settings, no_settings
from bigmodel.designs.isoflop import Scan
from bigmodel.laws import forecast

LAWS = (*forecast.LAWS, "isoflop")


@dataclasses.dataclass(frozen=True)
class Target:
  """The scale to forecast: a budget, and the candidate sizes, of which the one closest to the fitted optimum trains."""

  flops: float
  sizes: Sequence[Overrides]


@dataclasses.dataclass(frozen=True)
class Study:
  """A question and the runs that answer it. A sweep is a study without laws and target."""

  name: str
  question: str
  design: Design
  settings: Settings = no_settings
  laws: Sequence[str] = LAWS  # in N, D and C, or FILE.py:NAME; all but isoflop also forecast the target
  measure: str = "loss"  # what the laws describe: the held-out loss, or the name of a metric
  seeds: int = 1  # runs, with different seeds, of a middle size at the largest budget; they measure the noise
  scan: Scan | None = None
  target: Target | None = None
  schedules: Sequence[str] = ()  # whose last losses the report forecasts from the runs' loss curves
  accept_failed: bool = False  # whether to seal the forecast even if fitted runs have failed
