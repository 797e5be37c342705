"""What a config file's `get_study(config)` returns."""

import dataclasses
from collections.abc import Sequence

from bigmodel.designs.design import Design, Overrides, Settings, no_settings
from bigmodel.designs.isoflop import Scan
from bigmodel.laws import forecast

LAWS = (*forecast.LAWS, "isoflop")


@dataclasses.dataclass(frozen=True)
class Target:
  """The scale to forecast: a budget, and the sizes among which the fitted optimum chooses."""

  flops: float
  sizes: Sequence[Overrides]


@dataclasses.dataclass(frozen=True)
class Study:
  """A question and the runs that answer it. A sweep is a study with no laws and no target."""

  name: str
  question: str
  design: Design
  settings: Settings = no_settings
  laws: Sequence[str] = LAWS  # of N, D and C, or FILE.py:NAME: all are fitted, and all but isoflop forecast the target
  measure: str = "loss"  # what the laws describe: the held-out loss, or the name of a metric
  seeds: int = 1  # of one run in the middle of the largest budget: the noise floor
  scan: Scan | None = None
  target: Target | None = None
  accept_failed: bool = False  # seal the forecast of the target though fitted runs have failed
