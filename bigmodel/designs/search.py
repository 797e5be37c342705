"""Search: an adaptive design that proposes runs from the results of earlier runs, with Optuna."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from bigmodel.config import require
from bigmodel.declarations import Value
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings
from bigmodel.designs.grids import Listed
from bigmodel.designs.spaces import Between, Domain, applies, plain
from bigmodel.errors import UserError

if TYPE_CHECKING:
  import optuna

Trial = tuple[Overrides, float | None]  # a point of the space, and its loss if it has one


@dataclasses.dataclass(frozen=True)
class Search:
  """`trials` points of a space, proposed in batches of `at_once` from the losses of earlier batches (Optuna's TPE).

  A batch depends only on the study's records: equal records give equal points.
  """

  axes: Mapping[str, Domain]
  trials: int
  at_once: int = 8
  seed: int = 0
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    """Returns the first batch."""
    return self.more([], counts_of, settings)

  def more(self, trials: Sequence[Trial], counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    """Returns the next batch; empty once there are `trials` points."""
    planned = Listed(self.ask(trials), self.convention).runs(counts_of, settings)
    return [dataclasses.replace(run, role="search") for run in planned]

  def ask(self, trials: Sequence[Trial]) -> list[Overrides]:
    """Returns the points of the next batch, without points that were tried already."""
    require(self.trials > 0 and self.at_once > 0, f"sweep: {self.trials} trials, {self.at_once} at once; at least 1")
    study = self._study_of(trials)
    count = min(self.at_once, self.trials - len(trials))
    tried = [self._on_axes(overrides) for overrides, _ in trials]
    points: list[Overrides] = []
    for _ in range(20 * count):
      if len(points) == count:
        break
      point = self._point(study.ask())
      if point not in tried and point not in points:
        points.append(point)
    return points

  def _study_of(self, trials: Sequence[Trial]) -> "optuna.Study":
    """Returns an Optuna study with these trials, except those outside the space, which may have been larger earlier."""
    optuna = _optuna()
    sampler = optuna.samplers.TPESampler(
      seed=self.seed + len(trials), constant_liar=True, multivariate=True, group=True, n_startup_trials=self.at_once
    )
    study = optuna.create_study(sampler=sampler)
    for overrides, loss in trials:
      point = self._on_axes(overrides)
      if not all(_is_inside(self.axes[name], value) for name, value in point.items()):
        continue
      kinds = {name: _distribution(self.axes[name]) for name in point}
      values = {name: _to_optuna(self.axes[name], value) for name, value in point.items()}
      state = optuna.trial.TrialState.FAIL if loss is None else optuna.trial.TrialState.COMPLETE
      study.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=loss, state=state))
    return study

  def _on_axes(self, overrides: Overrides) -> Overrides:
    return {name: value for name, value in overrides.items() if name in self.axes}

  def _point(self, trial: "optuna.Trial") -> Overrides:
    point: dict[str, Value] = {}
    for name, domain in self.axes.items():
      if not applies(self.axes, name, point):
        continue
      values = plain(domain)
      if not isinstance(values, Between):
        point[name] = values[trial.suggest_categorical(name, list(range(len(values))))]
      elif values.integer:
        point[name] = trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
      else:
        value = trial.suggest_float(name, values.low, values.high, log=values.log)
        point[name] = min(max(float(f"{value:.4g}"), values.low), values.high)
    return point


def _optuna() -> ModuleType:
  try:
    import optuna
  except ImportError as error:
    raise UserError("sweep: a search needs optuna; pip install 'bigmodel[search]'") from error
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
  return optuna


def _distribution(domain: Domain) -> "optuna.distributions.BaseDistribution":
  from optuna import distributions

  values = plain(domain)
  if not isinstance(values, Between):
    return distributions.CategoricalDistribution(list(range(len(values))))
  if values.integer:
    return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
  return distributions.FloatDistribution(values.low, values.high, log=values.log)


def _is_inside(domain: Domain, value: Value) -> bool:
  values = plain(domain)
  if not isinstance(values, Between):
    return value in values
  return isinstance(value, int | float) and values.low <= value <= values.high


def _to_optuna(domain: Domain, value: Value) -> Value:
  """Returns a value as Optuna stores it: its index in a list, or the number itself."""
  values = plain(domain)
  return value if isinstance(values, Between) else list(values).index(value)
