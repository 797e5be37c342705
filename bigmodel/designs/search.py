"""Search: a design that looks at what came out before it asks for more, by Optuna."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel.config import require
from bigmodel.designs.design import CountsOf, Overrides, Planned, Settings, no_settings
from bigmodel.designs.grids import Listed
from bigmodel.designs.spaces import Between, Domain, When
from bigmodel.errors import UserError

Trial = tuple[Overrides, float | None]  # a point of the space and its loss, None where it has none


@dataclasses.dataclass(frozen=True)
class Search:
  """`trials` points of a space, each batch of `at_once` chosen by what the ones before came to (Optuna's TPE).

  What is known is the study's records and nothing else: the same records ask for the same points.
  """

  axes: Mapping[str, Domain]
  trials: int
  at_once: int = 8
  seed: int = 0
  convention: str = "flops_6nd"

  def runs(self, counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    """The first batch."""
    return self.more([], counts_of, settings)

  def more(self, known: Sequence[Trial], counts_of: CountsOf, settings: Settings = no_settings) -> list[Planned]:
    """The next batch; none where there are enough."""
    points = self.ask(known)
    planned = Listed(points, self.convention).runs(counts_of, settings)
    return [dataclasses.replace(one, role="search") for one in planned]

  def ask(self, known: Sequence[Trial]) -> list[Overrides]:
    require(self.trials > 0 and self.at_once > 0, f"sweep: {self.trials} trials, {self.at_once} at once")
    optuna = _optuna()
    sampler = optuna.samplers.TPESampler(
      seed=self.seed + len(known), constant_liar=True, multivariate=True, group=True, n_startup_trials=self.at_once
    )
    study = optuna.create_study(sampler=sampler)
    for overrides, loss in known:
      given = _chosen(overrides, self.axes)
      if not all(_inside(self.axes[name], x) for name, x in given.items()):
        continue  # of a larger space, before it was changed
      kinds = {name: _distribution(optuna, self.axes[name]) for name in given}
      values = {name: _index(self.axes[name], x) for name, x in given.items()}
      state = optuna.trial.TrialState.FAIL if loss is None else optuna.trial.TrialState.COMPLETE
      study.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=loss, state=state))
    count = min(self.at_once, self.trials - len(known))
    tried = [_chosen(overrides, self.axes) for overrides, _ in known]
    points: list[Overrides] = []
    for _ in range(20 * count):
      if len(points) == count:
        break
      point = self._point(study.ask())
      if point not in tried and point not in points:  # a run that is known would tell nothing
        points.append(point)
    return points

  def _point(self, trial: Any) -> Overrides:
    found: Overrides = {}
    for name, domain in self.axes.items():
      inner = domain.domain if isinstance(domain, When) else domain
      if isinstance(domain, When):
        known = list(self.axes)[: list(self.axes).index(name)]
        require(domain.axis in known, f"axis {name}: depends on {domain.axis}, which is no axis before it")
        if found.get(domain.axis) not in domain.values:
          continue
      if not isinstance(inner, Between):
        assert not isinstance(inner, When)
        found[name] = inner[trial.suggest_categorical(name, list(range(len(inner))))]
      elif inner.integer:
        found[name] = trial.suggest_int(name, int(inner.low), int(inner.high), log=inner.log)
      else:
        value = trial.suggest_float(name, inner.low, inner.high, log=inner.log)
        found[name] = min(max(float(f"{value:.4g}"), inner.low), inner.high)
    return found


def _chosen(overrides: Overrides, axes: Mapping[str, Any]) -> Overrides:
  return {name: x for name, x in overrides.items() if name in axes}


def _optuna() -> Any:
  try:
    import optuna
  except ImportError as error:
    raise UserError("sweep: a search needs optuna; pip install 'bigmodel[search]'") from error
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
  return optuna


def _distribution(optuna: Any, domain: Domain) -> Any:
  inner = domain.domain if isinstance(domain, When) else domain
  if not isinstance(inner, Between):
    return optuna.distributions.CategoricalDistribution(list(range(len(inner))))  # pyright: ignore[reportArgumentType]
  if inner.integer:
    return optuna.distributions.IntDistribution(int(inner.low), int(inner.high), log=inner.log)
  return optuna.distributions.FloatDistribution(inner.low, inner.high, log=inner.log)


def _inside(domain: Domain, value: Any) -> bool:
  inner = domain.domain if isinstance(domain, When) else domain
  return inner.low <= value <= inner.high if isinstance(inner, Between) else value in inner  # pyright: ignore


def _index(domain: Domain, value: Any) -> Any:
  """What Optuna calls a value: the place of one of a list."""
  inner = domain.domain if isinstance(domain, When) else domain
  return value if isinstance(inner, Between) else list(inner).index(value)  # pyright: ignore[reportArgumentType]
