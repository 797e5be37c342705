"""Parametrizations, which let settings carry over between model sizes: muP and CompleteP.

They multiply each parameter's initial values, learning rate, weight decay and epsilon. The multiples follow from the
shapes of the model and of the same model at a base size (`optim.base`), where all are 1. An axis that is longer than
the base's is called infinite. A matrix with an infinite input axis has its rate divided by the ratio of the lengths; if
its output axis is finite, its initial values are divided by the root of the ratio as well (Yang et al. 2022, tables 3
and 8). Where a table of embeddings gives the logits, the last norm's scale is divided by the ratio. `completep` also
divides what a block adds to the residual stream by the ratio of the layers (Dey et al. 2025). Multipliers of
activations are not needed: multiplying a parameter's initial values and its rate has the same effect. Adam's epsilon
follows the size of gradients, which shrink with a parameter's output axis and with the layers.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn

from bigmodel import models
from bigmodel.config import Config, digest, flatten, override, parse_value, require
from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.models.layers.roles import Label, Labels, Parameter, Path, Role, dotted
from bigmodel.optim import lookup, optimizers, user_optimizers
from bigmodel.optim.definitions import Optimizer, Step
from bigmodel.optim.fields import PARAMETRIZATIONS as PARAMETRIZATIONS
from bigmodel.types import Params, PyTree

Number = float | tuple[float, ...]  # of all layers, or of each
Multiples = tuple[tuple[str, Number, Number, Number, Number], ...]  # (name, init, rate, decay, epsilon), not all 1


def resolve(config: Config, raw: Config, facts: dict[str, Value]) -> None:
  """Completes `config.optim.base`, in place, with the fields that follow from it; `raw` is the unresolved config."""
  if config.optim.parametrization == "standard":
    return
  base, given = raw.model.copy_and_resolve_references(), set()
  for text in raw.optim.base:
    name, _, value = text.removeprefix("model.").partition("=")
    override(base, name, parse_value(value))
    given.add(name)
  models.resolve(base, facts)
  changed = {n: v for n, v in flatten(base).items() if n in given or v != flatten(config.model)[n]}
  config.optim.base = tuple(f"model.{name}={value!r}" for name, value in sorted(changed.items()))


def check(config: Config) -> None:
  """Refuses a parametrization that has no rule for the optimizer or for the model, or an invalid base model."""
  optim, model = config.optim, config.model
  if optim.parametrization == "standard":
    return
  optimizer = lookup.by_name(optim.name)
  accepted = [name for name, other in optimizers.BUILT_IN.items() if transfers(other)]
  require(
    optimizer.step is not None,
    f"config.optim.parametrization: {optim.parametrization} needs to know how the steps of"
    f" {user_optimizers.title(optim.name)} scale: declare it with"
    " @bigmodel.optim.optimizer(step=...), or use 'standard'",
  )
  require(
    transfers(optimizer),
    f"config.optim.parametrization: {optim.parametrization} has no rule for {user_optimizers.title(optim.name)},"
    f" whose steps it cannot scale with the model; use 'standard', or one of {', '.join(accepted)}",
  )
  require(bool(optim.base), "config.optim.base: empty; say a base size, such as ('model.width=64', 'model.layers=2')")
  for text in optim.base:
    match = re.fullmatch(r"model\.(\w+)=.+", text)
    require(match is not None and match[1] in model, f"config.optim.base: {text!r} is not model.FIELD=VALUE")
  _check_base(config)
  require(
    optim.parametrization != "completep" or any(text.startswith("model.layers=") for text in optim.base),
    "config.optim.base: completep needs the base's depth, such as 'model.layers=2'; mup is for width alone",
  )
  require(
    optim.parametrization != "completep" or models.begins_blocks_with_norms(model),
    "config.optim.parametrization: completep is for blocks with their norms first; mup is for these, too",
  )


def _check_base(config: Config) -> None:
  """Refuses a base model with sizes that no model can have, such as a width of 0."""
  base = config.copy_and_resolve_references()
  for text in config.optim.base:
    name, _, value = text.removeprefix("model.").partition("=")
    try:
      override(base.model, name, parse_value(value))
    except UserError as error:
      raise UserError(f"config.optim.base: {text!r}: {error}") from error
  try:
    models.check(base)
  except UserError as error:
    raise UserError(f"config.optim.base: no model can have this size: {error}") from error


def transfers(optimizer: Optimizer) -> bool:
  """Whether rates of the optimizer can be derived for other sizes, so that mup and completep accept it.

  They cannot for PARAMETER steps, which follow the parameters' size, and that already shrinks with the width.
  """
  return not optimizer.sets_rate and optimizer.step in (Step.ENTRY, Step.GRADIENT, Step.SPECTRAL)


def divides_last_norm(labels: Labels) -> bool:
  """Whether scales of the last norm are divided as the width grows: not where a matrix gives the outputs."""
  return all(label.role is not Role.OUTPUT for _, label in labels)


def multiples(config: Config) -> Multiples:
  """The multiples of a resolved config."""
  if config.optim.parametrization == "standard":
    return ()
  base = config.copy_and_resolve_references()
  for text in config.optim.base:
    name, _, value = text.removeprefix("model.").partition("=")
    override(base.model, name, parse_value(value))
  key = digest({name: x for name, x in flatten(config).items() if name.startswith(("model.", "data.", "optim."))})
  if key not in _CACHE:
    _CACHE[key] = _compared(config, base)
  return _CACHE[key]


_CACHE: dict[str, Multiples] = {}  # by digest of the config: each run asks many times


@dataclasses.dataclass(frozen=True)
class _Rules:
  """What the multiples depend on besides the parameter."""

  optimizer: Optimizer
  size_of_step: Callable[[tuple[int, ...]], float] | None  # of SPECTRAL steps
  depth: bool  # completep
  independent_decay: bool
  scores: float  # the multiple of attention's scores, where heads have another size than the base's
  divides_last_norm: bool
  has_scaled_table: bool


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """A parameter's shape and that of the base, without the axes of layers and experts, and the ratios of sizes."""

  shape: tuple[int, ...]
  base_shape: tuple[int, ...]
  layers: int  # of its stack; 1 outside of stacks
  more_layers: float  # ratio of the layers to those of the base

  @property
  def into(self) -> float:
    """The ratio of the input axes; 1 for vectors."""
    return self.shape[-2] / self.base_shape[-2] if len(self.shape) > 1 else 1.0

  @property
  def out(self) -> float:
    """The ratio of the output axes."""
    return self.shape[-1] / self.base_shape[-1] if self.shape else 1.0


def _compared(config: Config, base: Config) -> Multiples:
  """The multiples of a model in comparison with its base."""
  labels, shapes, base_shapes = models.labels(config), _shapes(config), _shapes(base)
  unknown = [name for name, label in labels if label.role is Role.UNKNOWN]
  require(
    not unknown,
    f"config.optim.parametrization: {config.optim.parametrization} needs the roles of all parameters;"
    f" {config.model.family} declares none for {unknown[:1]}",
  )
  require(
    shapes.keys() == base_shapes.keys(),
    f"config.optim.base: it has other parameters ({', '.join(sorted(shapes.keys() ^ base_shapes.keys()))}); layers that"
    " are no stack of blocks can't differ",
  )
  optimizer = lookup.by_name(config.optim.name)
  size_of_step = optimizer.spectral_size
  rules = _Rules(
    optimizer=optimizer,
    size_of_step=size_of_step and (lambda shape: size_of_step(shape, config.optim)),
    depth=config.optim.parametrization == "completep",
    independent_decay=config.optim.independent_decay,
    scores=math.sqrt(base.model.head_size / config.model.head_size) if "head_size" in config.model else 1.0,
    divides_last_norm=divides_last_norm(labels),
    has_scaled_table=any(label.role is Role.SCALED_TABLE for _, label in labels),
  )
  rows = []
  for name, label in labels:
    shape, base_shape = shapes[name], base_shapes[name]
    layers, more_layers = (shape[0], shape[0] / base_shape[0]) if label.in_stack else (1, 1.0)
    sizes = _Sizes(shape[label.stacked :], base_shape[label.stacked :], layers, more_layers)
    row = _multiples_of(label, sizes, rules)
    if row != (1.0, 1.0, 1.0, 1.0):
      rows.append((name, *row))
  return tuple(rows)


def _multiples_of(label: Label, sizes: _Sizes, rules: _Rules) -> tuple[Number, Number, Number, Number]:
  """(initial values, rate, decay, epsilon) of a parameter."""
  init, factor = _initial_and_factor(label, sizes, rules)
  more_layers = sizes.more_layers if rules.depth else 1.0  # gradients of a block shrink as what it adds does
  linear = rules.optimizer.step is Step.GRADIENT
  rate = _rate(rules, label.is_hidden, sizes) * (more_layers if linear else 1.0)
  decays = label.is_matrix and not rules.independent_decay

  def numbers(factor: float) -> tuple[float, float, float, float]:
    """For a parameter that has `factor` times the effect that its values have."""
    scaled_rate = rate * (factor**2 if linear else factor)
    decay = 1 / scaled_rate if decays else 1.0
    return init * factor, scaled_rate, decay, 1 / sizes.out / more_layers / factor

  last = label.role is Role.LAST_NORM and rules.divides_last_norm
  if last and label.in_stack and factor != 1:  # of a stack's norms, the last layer's
    first, second, third, fourth = zip(*([numbers(1.0)] * (sizes.layers - 1)), numbers(factor), strict=True)
    return first, second, third, fourth
  return numbers(factor)


def _initial_and_factor(label: Label, sizes: _Sizes, rules: _Rules) -> tuple[float, float]:
  """The multiple of the initial values, and the factor by which the parameter's effect is multiplied.

  The factor multiplies initial values and rate both: see `_multiples_of`.
  """
  init, factor, into, out = 1.0, 1.0, sizes.into, sizes.out
  if label.role in (Role.SHRINKING_TABLE, Role.OUTPUT_TABLE) and into == 1:
    init *= math.sqrt(out)
  if into != 1 and out == 1:
    init /= math.sqrt(into)
  if label.role is Role.SCALED_TABLE:
    init, factor = math.sqrt(out), 1 / math.sqrt(out)
  if label.role is Role.LAST_NORM and rules.divides_last_norm:
    factor /= math.sqrt(out) if rules.has_scaled_table else out  # such a table already divides by the root
  if label.role is Role.BRANCH_END and rules.depth:
    factor /= sizes.more_layers
    init *= (
      math.sqrt(sizes.more_layers) if label.is_matrix else 1.0
    )  # the initial values of these matrices are already proportional to (2 L)^-1/2
  if label.role is Role.QUERY:
    factor *= rules.scores
  return init, factor


def _rate(rules: _Rules, hidden: bool, sizes: _Sizes) -> float:
  """The multiple of a parameter's rate as its axes grow."""
  into, out, step = sizes.into, sizes.out, rules.optimizer.step
  if step is Step.GRADIENT:  # gradients shrink with the width
    return 1 / into if out == 1 else 1.0 if into != 1 else out
  if step is Step.SPECTRAL and hidden:
    assert rules.size_of_step is not None
    # A step whose spectral norm is sqrt(out / in) moves activations as much at every size (Bernstein 2025).
    here, at_base = (
      rules.size_of_step(each) / optimizers.update_size("spectral", each) for each in (sizes.shape, sizes.base_shape)
    )
    return at_base / here
  return 1 / into


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(models.abstract_parameters(config)))
  return {dotted(path): x.shape for path, x in leaves}


def over(number: Number, x: jax.Array) -> np.ndarray | float:
  """A multiple of a parameter in a shape that broadcasts against its array `x`."""
  return np.array(number, np.float32).reshape(-1, *[1] * (x.ndim - 1)) if isinstance(number, tuple) else number


def scaled(params: Params, multiples: Multiples) -> Params:
  """Initial parameters, boxed or not, times their multiples."""
  by_name = {name: init for name, init, *_ in multiples}
  if not by_name:
    return params

  def is_box(x: object) -> bool:
    return isinstance(x, Parameter)

  def scale(path: Path, x: Parameter | jax.Array) -> PyTree:
    multiple = by_name.get(dotted(path), 1.0)
    if isinstance(x, Parameter):
      return x.replace_boxed(x.unbox() * over(multiple, x.unbox()))
    return x * over(multiple, x)

  return jax.tree_util.tree_map_with_path(scale, params, is_leaf=is_box)
