"""Splits `config.optim` into what is compiled into a training step and what the step takes as traced inputs."""

import dataclasses

import jax.numpy as jnp
import optax

from bigmodel import models, tasks
from bigmodel.config import Config
from bigmodel.declarations import TRACED, Value, declared_in
from bigmodel.models.layers.roles import Labels
from bigmodel.optim import lookup, parametrization, schedules
from bigmodel.optim.definitions import Optimizer
from bigmodel.optim.fields import Optim
from bigmodel.optim.patterns import parse
from bigmodel.optim.traced import Hyperparameters

# The traced numbers that every config has, without those that become steps.
NUMBERS = tuple(
  name
  for name, field in declared_in(Optim).items()
  if field.use is TRACED and isinstance(field.default, float) and name not in ("warmup", "decay")
)


def hyperparameters(config: Config, steps: int, first: int = 0) -> Hyperparameters:
  """The traced inputs of `steps` steps of a run, from its step `first` on; of a resolved config."""
  optim = config.optim
  warmup = max(1, round(optim.warmup * steps)) if optim.warmup else 0
  decay = schedules.decay_steps(optim.schedule, steps, warmup, optim.decay)
  values = {"warmup": warmup, "decay": decay, "steps": steps, "first": first, **{name: optim[name] for name in NUMBERS}}
  return Hyperparameters(
    **{name: jnp.float32(value) for name, value in values.items()},
    numbers={name: jnp.float32(optim[name]) for name in _of_optimizers(optim.name, traced=True)},
    rates=tuple(jnp.float32(value) for _, value in parse("rates", optim.rates)),
    decays=tuple(jnp.float32(value) for _, value in parse("decays", optim.decays)),
    seed=jnp.int32(config.seed),
    task={name: jnp.float32(value) for name, value in tasks.traced(config).items()},
    rate=jnp.float32(0),
  )


def _of_optimizers(name: str, traced: bool) -> tuple[str, ...]:
  """The traced or the compiled ones of the fields that optimizers declare, in a config with this optimizer."""
  shared = declared_in(Optim)
  return tuple(
    field for field, one in lookup.declared(name).items() if field not in shared and (one.use is TRACED) == traced
  )


@dataclasses.dataclass(frozen=True)
class How:
  """What a training step has compiled in of `config.optim`; hashable, so that programs can depend on it."""

  name: str
  schedule: str
  compiled: tuple[tuple[str, Value], ...]  # compiled fields that optimizers declare, with their values
  independent_decay: bool
  rates: tuple[str, ...]  # patterns
  decays: tuple[str, ...]  # patterns
  skips: bool
  averages: bool
  frozen: tuple[str, ...]
  multiples: parametrization.Multiples
  labels: Labels  # of the model's parameters

  @classmethod
  def of(cls, config: Config, labels: Labels | None = None) -> "How":
    """Of a resolved config; `labels` are for parameters that are not those of its model."""
    optim = config.optim
    declared = declared_in(Optim)
    return cls(
      name=optim.name,
      schedule=optim.schedule,
      compiled=tuple((name, optim[name]) for name in _of_optimizers(optim.name, traced=False)),
      independent_decay=optim.independent_decay,
      rates=declared["rates"].compiled(optim.rates),
      decays=declared["decays"].compiled(optim.decays),
      skips=declared["skip_above"].compiled(optim.skip_above),
      averages=declared["average"].compiled(optim.average),
      frozen=tuple(optim.frozen),
      multiples=parametrization.multiples(config),
      labels=models.labels(config) if labels is None else labels,
    )

  @property
  def optimizer(self) -> Optimizer:
    return lookup.by_name(self.name)

  @property
  def keeps_average(self) -> bool:
    """Whether other parameters are evaluated than those that are trained."""
    return self.averages or self.optimizer.averages

  def transformation(self, h: Hyperparameters) -> optax.GradientTransformationExtraArgs:
    """The optimizer's transformation in a step with these hyperparameters."""
    supplied = {"labels": self.labels, "learning_rate": h.rate}
    return self.optimizer.build({**supplied, **h._asdict(), **h.numbers, **dict(self.compiled)})

  def initial_transformation(self) -> optax.GradientTransformationExtraArgs:
    """The optimizer's transformation for making a state, which does not depend on hyperparameters."""
    declared = lookup.declared(self.name)
    numbers = {name: declared[name].default for name in _of_optimizers(self.name, traced=True)}
    supplied = {"labels": self.labels, "learning_rate": 0.0}
    zeros = dict.fromkeys(NUMBERS, 0.0)
    return self.optimizer.build({**supplied, **zeros, **numbers, **dict(self.compiled)})
