"""How optimizers are defined: as functions that return an optax transformation.

The parameters of the function are what it reads. Each is the name of

- a field of `config.optim` that optimizers share: `beta1`, `beta2`, `epsilon`, `momentum` or `weight_decay`;
- a field that the optimizer declares itself, by a default or in `fields`: it becomes `config.optim.NAME`;
- `labels`: the axes and roles of the model's parameters (`models.layers.roles.Labels`);
- `learning_rate`: the learning rate of the step, warm-up and schedule included.

A function with the parameter `learning_rate` returns a complete optimizer, as `optax.lamb(learning_rate)` is: its
updates are added to the parameters as they are, and it applies weight decay itself. A function without it returns the
direction of the step, as `optax.scale_by_adam()` does: learning rate, weight decay, the rules `optim.rates` and
`optim.decays` and the parametrization are applied to it. In both cases gradients are clipped before.

Floats are traced, so runs that differ in them share one program; all other types are compiled in.
"""

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Mapping

import optax

from bigmodel.declarations import COMPILED, TRACED, Field, Value

Function = Callable[..., optax.GradientTransformation]
# (shape of a single matrix, the optimizer's compiled fields) -> the factor of its orthogonal step.
SpectralSize = Callable[[tuple[int, ...], Mapping[str, Value]], float]

COMMON = ("beta1", "beta2", "epsilon", "momentum")  # fields that only some optimizers read, declared in `fields`
SUPPLIED = ("labels", "learning_rate", "weight_decay")  # parameters that any optimizer may have besides


class Step(enum.Enum):
  """How the size of an optimizer's step scales. muP's learning rates follow from it; see `parametrization`.

  Only GRADIENT steps are larger where gradients are larger. The size of all others does not depend on the gradients'
  scale, down to `epsilon`.
  """

  ENTRY = "the rms of a parameter's step does not depend on its shape: Adam, and what is grafted on it"
  GRADIENT = "the step is proportional to the gradient: SGD"
  SPECTRAL = "hidden matrices move by an orthogonal matrix times `spectral_size` of their shape, the rest as ENTRY"
  PARAMETER = "the step is proportional to the parameter's own size"


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A function that returns a transformation, with facts about it. The state does not depend on hyperparameters."""

  function: Function
  fields: Mapping[str, Field]  # the fields of `config.optim` that it declares itself
  step: Step | None = None  # None: unknown, so only the standard parametrization accepts it
  spectral_size: SpectralSize | None = None  # of SPECTRAL steps
  second_order: bool = False  # its update takes `obj_fn`, the loss as a function of parameters
  by_epsilon: bool = False  # the scale of gradients matters only in comparison with `epsilon`
  averages: bool = False  # evaluated are averages of the parameters that follow from `z` in its state, and `beta1`

  @functools.cached_property
  def parameters(self) -> tuple[str, ...]:
    """The names of the function's parameters."""
    return tuple(inspect.signature(self.function).parameters)

  def build(self, values: Mapping[str, object]) -> optax.GradientTransformationExtraArgs:
    """The transformation for these values, which are at least those of its parameters."""
    return optax.with_extra_args_support(self.function(**{name: values[name] for name in self.parameters}))

  @property
  def reads(self) -> tuple[str, ...]:
    """The fields of `config.optim` that change its steps, among those that only some optimizers read."""
    return tuple(name for name in self.parameters if name not in SUPPLIED)

  @property
  def sets_rate(self) -> bool:
    """Whether it applies the learning rate itself: what it returns is a complete update."""
    return "learning_rate" in self.parameters


def optimizer(
  *,
  step: Step | None = None,
  fields: Mapping[str, Field] | None = None,
  spectral_size: SpectralSize | None = None,
  second_order: bool = False,
  by_epsilon: bool = False,
  averages: bool = False,
) -> Callable[[Function], Optimizer]:
  """A decorator that makes an `Optimizer` of a function; the arguments are attributes of `Optimizer`.

  Parameters with defaults become fields; `fields` declares others in full, with what they mean and which values they
  may have.
  """

  def define(function: Function) -> Optimizer:
    declared = {**fields_of_defaults(function), **(fields or {})}
    return Optimizer(function, declared, step, spectral_size, second_order, by_epsilon, averages)

  return define


def fields_of_defaults(function: Function) -> dict[str, Field]:
  """The fields that a function declares by the defaults of its parameters."""
  fields = {}
  for name, parameter in inspect.signature(function).parameters.items():
    default = parameter.default
    if isinstance(default, bool | int | float | str | tuple):
      use = TRACED if isinstance(default, float) else COMPILED
      fields[name] = Field(default, f"parameter of {function.__name__}", use=use, added_later=True)
  return fields
