"""Early stopping of the runs of a sweep that, by a forecast from their curves, cannot become the best."""

import dataclasses

from bigmodel.config import require
from bigmodel.designs.design import CountsOf, Design, Planned, Settings, no_settings

PAUSES = 8  # parts of the horizon, after each of which runs are evaluated
FIRST = 3  # of these parts, after which runs may be stopped
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
  """Another design, whose runs stop where their last loss is forecast to be worse than that of a finished setting.

  A setting is stopped, with all of its seeds, if its last loss is worse than that of the best finished setting with a
  probability of `level`, by `laws.last_loss`. The setting that is ahead when the first ones may stop trains to its end
  at once, and so does one that is forecast to be better later.
  """

  design: Design
  level: float = LEVEL

  @property
  def convention(self) -> str:
    return self.design.convention

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    require(0.5 <= self.level < 1, f"study design: level {self.level} of early stopping is not in [0.5, 1)")
    return [dataclasses.replace(run, role="early_stopping") for run in self.design.runs(counts_of, settings)]

  def pauses(self, steps: int) -> list[int]:
    """Returns the steps at which runs of this horizon are evaluated, before their last one."""
    return sorted({round(steps * k / PAUSES) for k in range(1, PAUSES)} - {0, steps})

  def may_stop(self, step: int, steps: int) -> bool:
    """Whether runs of this horizon may be stopped at a step."""
    return step >= round(steps * FIRST / PAUSES)
