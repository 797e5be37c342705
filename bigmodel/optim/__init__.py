"""Optimizers and schedules as functions of traced hyperparameters: a sweep over them compiles once."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bigmodel import declarations, models, tasks
from bigmodel.config import Config, require
from bigmodel.declarations import Value
from bigmodel.models.layers import roles
from bigmodel.optim import names, optimizers, parametrization, schedules
from bigmodel.optim.fields import Optim
from bigmodel.optim.names import parse
from bigmodel.optim.optimizers import NAMES
from bigmodel.optim.optimizers import UPDATE_SCALES as UPDATE_SCALES
from bigmodel.optim.schedules import SCHEDULES

NORM_DECAY = 0.95  # of the running average of gradient norms that spikes are told by
SETTLED = 20  # steps before a spike can be told
MOST_SKIPPED = 50  # steps in a row, with which a run has diverged: about as long as the training loss is averaged over


def defaults() -> dict[str, Value]:
  """The fields of `config.optim` with their defaults."""
  return declarations.defaults(Optim)


def check(config: Config) -> None:
  optim = config.optim
  declarations.check("optim", Optim, optim)
  require(
    optim.skip_above == 0 or optim.skip_above > 1, f"config.optim.skip_above: {optim.skip_above}; 0 or more than 1"
  )
  require(
    optim.schedule != "wsd" or optim.warmup + optim.decay <= 1,
    f"config.optim: warmup {optim.warmup} and decay {optim.decay} are more than the whole run",
  )
  for field in ("rates", "decays"):
    parse(field, optim[field])
  parametrization.check(config)
  defaults = declarations.defaults(Optim)
  for field, reason in _without_effect(optim).items():
    require(
      optim[field] == defaults[field],
      f"config.optim.{field}: {optim[field]!r} has no effect {reason}; leave it at its default, {defaults[field]!r}",
    )
  require(
    not (optim.name == "schedule_free" and (optim.average or optim.beta1 == 0)),
    "config.optim: schedule_free averages parameters itself, with beta1 above 0; set average=0",
  )


def reset_without_effect(optim: Config, keep: set[str]) -> None:
  """Sets the fields that have no effect beside the others to their defaults, in place, but for those in `keep`."""
  if optim.name in NAMES and optim.schedule in SCHEDULES:  # otherwise `check` refuses it
    defaults = declarations.defaults(Optim)
    optim.update({field: defaults[field] for field in _without_effect(optim) if field not in keep})


def _without_effect(optim: Config) -> dict[str, str]:
  """The fields that change nothing beside the others, and why: set, they would only give equal runs different ids."""
  optimizer = optimizers.known()[optim.name]
  found = {}
  for field in optimizers.SPECIFIC:
    if field not in optimizer.reads:
      found[field] = f"on {optim.name}"
  for field in schedules.SPECIFIC:
    if field not in schedules.READS[optim.schedule]:
      found[field] = f"on the {optim.schedule} schedule"
  if optim.weight_decay == 0:
    found |= dict.fromkeys(("decays", "independent_decay"), "with weight_decay 0")
  if optimizer.own_rate:
    reason = f"on {optim.name}, which sets its steps for all parameters itself"
    found |= dict.fromkeys(("rates", "decays", "independent_decay"), reason)
  if optim.parametrization == "standard":
    found["base"] = "on the standard parametrization"
  return found


class Hyperparameters(NamedTuple):
  """What changes no shape: scalars, traced."""

  lr: Any
  warmup: Any  # steps
  decay: Any  # steps
  steps: Any  # the horizon
  first: Any  # step of the run at which this schedule begins
  final: Any
  beta1: Any
  beta2: Any
  epsilon: Any
  momentum: Any
  gamma: Any
  weight_decay: Any
  rates: Any  # of each rule
  decays: Any
  clip: Any
  skip_above: Any
  average: Any
  seed: Any  # of dropout, and of what a task draws
  task: Any  # the traced numbers of its loss, by name
  rate: Any = 0.0  # the learning rate of this step


# The traced numbers of `config.optim` but those that become steps.
NUMBERS = tuple(
  name
  for name, one in declarations.declared_in(Optim).items()
  if one.use is declarations.TRACED and isinstance(one.default, float) and name not in ("warmup", "decay")
)


def hyperparameters(config: Config, steps: int, first: int = 0) -> Hyperparameters:
  """The traced inputs of `steps` steps of a run, from its step `first` on."""
  optim = config.optim
  warmup = max(1, round(optim.warmup * steps)) if optim.warmup else 0
  decay = schedules.decay_steps(optim.schedule, steps, warmup, optim.decay)
  values = {"warmup": warmup, "decay": decay, "steps": steps, "first": first, **{name: optim[name] for name in NUMBERS}}
  of_rules = lambda field: tuple(jnp.float32(value) for _, value in parse(field, optim[field]))
  return Hyperparameters(
    **{name: jnp.float32(value) for name, value in values.items()},
    rates=of_rules("rates"),
    decays=of_rules("decays"),
    seed=jnp.int32(config.seed),
    task={name: jnp.float32(value) for name, value in tasks.traced(config).items()},
    rate=jnp.float32(0),
  )


@dataclasses.dataclass(frozen=True)
class How:
  """What of `config.optim` is compiled in."""

  name: str
  schedule: str
  update_scale: str
  independent_decay: bool
  rates: tuple[str, ...]
  decays: tuple[str, ...]
  skips: bool
  averages: bool
  frozen: tuple[str, ...]
  multiples: parametrization.Multiples
  labels: roles.Labels  # of the model's parameters

  @classmethod
  def of(cls, config: Config, labels: roles.Labels | None = None) -> "How":
    """Of a resolved config; `labels` are for parameters that are not those of its model."""
    optim = config.optim
    compiled = {name: one.compiled(optim[name]) for name, one in declarations.declared_in(Optim).items()}
    return cls(
      name=optim.name,
      schedule=optim.schedule,
      update_scale=optim.update_scale,
      independent_decay=optim.independent_decay,
      rates=compiled["rates"],
      decays=compiled["decays"],
      skips=compiled["skip_above"],
      averages=compiled["average"],
      frozen=tuple(optim.frozen),
      multiples=parametrization.multiples(config),
      labels=models.labels(config) if labels is None else labels,
    )

  @property
  def keeps_average(self) -> bool:
    """Whether other parameters are evaluated than those that are trained."""
    return self.averages or self.name == "schedule_free"

  @property
  def optimizer(self) -> optimizers.Optimizer:
    return optimizers.known(self.update_scale)[self.name]


class State(NamedTuple):
  """The optimizer's own state, and what is kept beside it; () where nothing is."""

  own: Any
  average: Any = ()  # of the parameters, not yet divided by 1 - decay^steps
  steps: Any = ()  # in the average
  norm: Any = ()  # running average of the gradient norm, likewise
  taken: Any = ()  # steps that were not skipped
  skipped: Any = ()
  skipped_in_a_row: Any = ()  # up to the last step


def initial_state(how: How, params: Any) -> State:
  """The state before the first step, whatever the hyperparameters; boxed as its parameters are, where they are.

  Frozen parameters have no part in it.
  """
  raw = trainable(nn.meta.unbox(params), how.frozen)
  zero = Hyperparameters(*(0.0,) * len(Hyperparameters._fields))
  state = State(how.optimizer.direction(zero, how.labels).init(raw))
  if how.averages:
    state = state._replace(average=jax.tree.map(jnp.zeros_like, raw), steps=jnp.int32(0))
  if how.skips:
    state = state._replace(norm=jnp.float32(0), taken=jnp.int32(0), skipped=jnp.int32(0), skipped_in_a_row=jnp.int32(0))
  boxes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  if not any(isinstance(x, nn.LogicallyPartitioned) for _, x in boxes):
    return state
  return _named(state, {path: x for path, x in boxes})


def _named(state: State, params: dict[roles.Path, Any]) -> State:
  """Names the axes of each array by those of its parameter that are as long, in their order.

  The second axis of a square factor gets the parameter's `embed`, where the first does not have it and it divides:
  factors are as large as parameters, and `embed` is what is spread everywhere.
  """

  def box(path: roles.Path, x: Any) -> Any:
    found = [p for p in params if any(path[i : i + len(p)] == p for i in range(len(path)))]
    whole = params[max(found, key=len)] if found else None
    axes: list[str | None] = []
    left = list(zip(whole.value.shape, whole.names, strict=True)) if whole is not None else []
    embed = dict(zip(whole.names, whole.value.shape, strict=True)).get("embed", 0) if whole is not None else 0
    for size in x.shape:
      at = next((i for i, (length, _) in enumerate(left) if length == size), None)
      square = at is None and len(axes) > 0 and size == x.shape[len(axes) - 1] and embed and size % embed == 0
      axes.append(left[at][1] if at is not None else "embed" if square and "embed" not in axes else None)
      left = left if at is None else left[at + 1 :]
    return nn.LogicallyPartitioned(x, tuple(axes)) if x.ndim else x

  return jax.tree_util.tree_map_with_path(box, state)


def update(
  how: How,
  grads: Any,
  state: State,
  params: Any,
  step: jax.Array,
  h: Hyperparameters,
  loss: Any = None,
  loss_is_finite: Any = True,
) -> tuple[Any, State, dict[str, jax.Array]]:
  """One step: new parameters and state, and what to log; `loss` of parameters is for optimizers that ask for it.

  A step that is skipped (`config.optim.skip_above`) changes nothing but the counts of skipped steps.
  """
  grads, whole, params = trainable(grads, how.frozen), params, trainable(params, how.frozen)
  norm = optax.tree.norm(grads)
  factor = schedules.factor(how.schedule, step, h)
  h = h._replace(rate=h.lr * factor)
  clipped = jax.tree.map(lambda g: g * jnp.minimum(1.0, h.clip / jnp.maximum(norm, 1e-16)), grads)
  optimizer = how.optimizer
  if how.multiples and optimizer.by_epsilon:  # g / (|g| + e c) is (g / c) / (|g / c| + e)
    sizes = {name: epsilon for name, _, _, _, epsilon in how.multiples}
    own = lambda path, g: g / parametrization.over(sizes.get(roles.dotted(path), 1.0), g)
    clipped = jax.tree_util.tree_map_with_path(own, clipped)
  extra = {"obj_fn": _of_trainable(loss, whole)} if optimizer.second_order else {}
  transformation = optax.with_extra_args_support(optimizer.direction(h, how.labels))
  direction, own = transformation.update(clipped, state.own, params, **extra)
  rate, decay = _multiples(how, params, h)
  updates = direction
  if not optimizer.own_rate:
    shrink = lambda r: h.weight_decay * (factor if how.independent_decay else h.rate * r)
    updates = jax.tree.map(lambda d, p, r, w: -h.rate * r * d - shrink(r) * w * p, direction, params, rate, decay)
  new = optax.apply_updates(params, updates)
  after, told = state._replace(own=own), {"grad_norm": norm, "lr": h.rate}
  if how.averages:
    average = jax.tree.map(lambda a, p: h.average * a + (1 - h.average) * p, state.average, new)
    after = after._replace(average=average, steps=state.steps + 1)
  if how.skips:
    spike = _is_spike(norm, state, h) | ~(loss_is_finite & jnp.isfinite(optax.tree.norm(new)))
    stay = lambda old, new: jnp.where(spike, old, new)
    seen = NORM_DECAY * state.norm + (1 - NORM_DECAY) * norm
    after = after._replace(norm=seen, taken=state.taken + 1)
    new, after = jax.tree.map(stay, (params, state), (new, after))
    in_a_row = jnp.where(spike, state.skipped_in_a_row + 1, 0)
    after = after._replace(skipped=state.skipped + spike, skipped_in_a_row=in_a_row)
    told["skipped"] = after.skipped
  return merged(whole, new), after, told


def _is_spike(norm: jax.Array, state: State, h: Hyperparameters) -> jax.Array:
  usual = state.norm / jnp.maximum(1 - NORM_DECAY ** state.taken.astype(jnp.float32), 1e-6)
  return ((state.taken >= SETTLED) & (norm > h.skip_above * usual)) | ~jnp.isfinite(norm)


def _multiples(how: How, params: Any, h: Hyperparameters) -> tuple[Any, Any]:
  """Of each parameter, what multiplies the learning rate and the weight decay."""
  pick = lambda values, default: lambda place: values[place] if place >= 0 else default
  rate = jax.tree.map(pick(h.rates, 1.0), names.which(params, how.rates))
  matrices = jax.tree_util.tree_map_with_path(lambda path, _: float(how.labels.at(path).is_matrix), params)
  decay = jax.tree.map(lambda place, plain: pick(h.decays, plain)(place), names.which(params, how.decays), matrices)
  if how.multiples:
    sizes = {name: (own_rate, own_decay) for name, _, own_rate, own_decay, _ in how.multiples}
    times = lambda i: lambda path, x, p: x * parametrization.over(sizes.get(roles.dotted(path), (1.0, 1.0))[i], p)
    rate, decay = (jax.tree_util.tree_map_with_path(times(i), tree, params) for i, tree in enumerate((rate, decay)))
  return rate, decay


def is_averaged(config: Config) -> bool:
  """Whether a run is judged by an average of its parameters, which needs no decay of the learning rate."""
  return config.optim.name == "schedule_free" or config.optim.average > 0


def evaluated(config: Config, params: Any, state: State) -> Any:
  """The parameters that a run is judged by: their average, where the optimizer or the config asks for one."""
  optim = config.optim
  return _evaluated(optim.name, tuple(optim.frozen), optim.beta1, optim.average or None, params, state)


def evaluated_in_training(how: How, h: Hyperparameters, params: Any, state: State) -> Any:
  """As `evaluated`, with traced hyperparameters, such as those of a member of a pack."""
  return _evaluated(how.name, how.frozen, h.beta1, h.average if how.averages else None, params, state)


def _evaluated(name: str, frozen: tuple[str, ...], beta1: Any, average: Any, params: Any, state: State) -> Any:
  """`average` is None where none is kept. Frozen parameters have no average; before the first step, none has."""
  part = trainable(params, frozen)
  if name == "schedule_free":
    z = trainable(state.own.z, frozen)
    return merged(params, jax.tree.map(lambda y, z: (y - (1 - beta1) * z) / beta1, part, z))
  if average is not None:
    share = 1 - average ** jnp.maximum(state.steps, 1).astype(jnp.float32)
    known = trainable(state.average, frozen)
    return merged(params, jax.tree.map(lambda a, p: jnp.where(state.steps > 0, a / share, p), known, part))
  return params


def trainable(params: Any, frozen: tuple[str, ...], prefix: str = "") -> Any:
  """The parameters (or their gradients) without those in whose dotted name one of the patterns is found.

  `params` are nested dictionaries; `prefix` is the dotted name of the outermost one.
  """
  if not frozen:
    return params
  kept = {}
  for key, value in params.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping):
      part = trainable(value, frozen, f"{name}.")
      kept |= {key: part} if part else {}
    elif not any(re.search(pattern, name) for pattern in frozen):
      kept[key] = value
  return kept


def merged(params: Any, part: Any) -> Any:
  """All parameters, with the values of `part`, which `trainable` gave, in their places."""
  if not isinstance(params, Mapping):
    return part
  return {key: merged(value, part[key]) if key in part else value for key, value in params.items()}


def _of_trainable(loss: Callable[[Any], Any] | None, params: Any) -> Callable[[Any], Any]:
  """`loss`, which is a function of all parameters, as a function of those that are not frozen."""
  assert loss is not None
  return lambda part: loss(merged(params, part))
