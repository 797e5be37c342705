"""The fields of `config.optim` that do not belong to a single optimizer."""

import dataclasses
from collections.abc import Sequence

from bigmodel.declarations import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, TRACED, OneOf, Range, declared_in, field
from bigmodel.optim import optimizers
from bigmodel.optim.patterns import parse
from bigmodel.optim.schedules import SCHEDULES
from bigmodel.user_files import is_reference

PARAMETRIZATIONS = ("standard", "mup", "completep")
CLIPPED = Range(0, low_open=True, instead="a large number such as 1e9 clips nothing")


class NameOrFile(OneOf):
  """One of these names, or a user's own as FILE.py:NAME."""

  def problem(self, value: str) -> str:
    if is_reference(value):
      return ""
    problem = super().problem(value)
    return f"{problem}, or FILE.py:NAME" if problem else ""


def is_positive(value: float) -> bool:
  """The compiled part of a number that switches something on: whether it does."""
  return value > 0


def patterns_of_rates(rules: Sequence[str]) -> tuple[str, ...]:
  """The compiled part of rules for learning rates: their patterns, without their numbers."""
  return tuple(pattern for pattern, _ in parse("rates", rules))


def patterns_of_decays(rules: Sequence[str]) -> tuple[str, ...]:
  """The compiled part of rules for weight decay: their patterns, without their numbers."""
  return tuple(pattern for pattern, _ in parse("decays", rules))


@dataclasses.dataclass(frozen=True)
class Optim:
  name: str = field("adamw", "optimizer; see `optim.optimizers`", NameOrFile(optimizers.NAMES))
  lr: float = field(3e-3, "peak learning rate; 1 for prodigy", POSITIVE, TRACED)
  schedule: str = field("cosine", "of the learning rate; see `optim.schedules`", OneOf(SCHEDULES))
  warmup: float = field(0.1, "share of the run's steps over which the learning rate rises", SHARE, TRACED)
  decay: float = field(0.2, "of wsd: share of the run's steps over which the learning rate falls", SHARE, TRACED)
  final: float = field(0.1, "learning rate at the end, as a share of `lr`", SHARE, TRACED)
  beta1: float = field(0.9, "decay of the average of gradients", BELOW_ONE, TRACED)
  beta2: float = field(0.95, "decay of the average of squared gradients", BELOW_ONE, TRACED)
  epsilon: float = field(1e-8, "added to the root of the average of squared gradients", NOT_NEGATIVE, TRACED)
  momentum: float = field(0.95, "of momentum and muon", BELOW_ONE, TRACED)
  weight_decay: float = field(0.1, "of matrices, times the learning rate", NOT_NEGATIVE, TRACED)
  independent_decay: bool = field(
    False, "weight decay follows the schedule, but not the learning rate (Wortsman et al. 2023)"
  )
  rates: tuple[str, ...] = field(
    (),
    "'PATTERN=NUMBER': learning rate of parameters with such names, in units of `lr`",
    None,
    TRACED,
    patterns_of_rates,
  )
  decays: tuple[str, ...] = field(
    (),
    "'PATTERN=NUMBER': weight decay of such parameters, vectors too, in units of `weight_decay`",
    None,
    TRACED,
    patterns_of_decays,
  )
  clip: float = field(1.0, "largest global norm of the gradients; 1e9 clips nothing", CLIPPED, TRACED)
  skip_above: float = field(
    0.0,
    "skip steps whose gradient norm is this many times the usual one, or whose loss, gradients or new parameters"
    " are not finite; many in a row end the run as diverged. 0: skip none",
    None,
    TRACED,
    is_positive,
  )
  average: float = field(
    0.0,
    "decay of an average of the parameters, which is evaluated in their place; 0: none",
    BELOW_ONE,
    TRACED,
    is_positive,
  )
  parametrization: str = field(
    "standard", "how settings follow the model's size; see `optim.parametrization`", OneOf(PARAMETRIZATIONS)
  )
  base: tuple[str, ...] = field(
    (), "'model.FIELD=VALUE': the size at which mup and completep equal the standard parametrization"
  )
  frozen: tuple[str, ...] = field((), "patterns of parameters that keep their initial values")


# The fields of every config: those above and those that built-in optimizers declare.
FIELDS = declared_in(Optim) | optimizers.FIELDS
