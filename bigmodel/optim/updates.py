"""One step of an optimizer: from gradients, parameters and state to new parameters and state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bigmodel.models.layers.roles import Path, dotted
from bigmodel.optim import parametrization, schedules
from bigmodel.optim.frozen import merged, of_trainable, trainable
from bigmodel.optim.patterns import first_matches
from bigmodel.optim.settings import How
from bigmodel.optim.state import State
from bigmodel.optim.traced import Hyperparameters, Number
from bigmodel.types import Params, PyTree

NORM_DECAY = 0.95  # of the running average of gradient norms with which a step's norm is compared
SETTLED = 20  # steps before a spike can be detected
MOST_SKIPPED = 50  # steps in a row, with which a run has diverged: about as long as the training loss is averaged over


def update(
  how: How,
  grads: Params,
  state: State,
  params: Params,
  step: jax.Array,
  h: Hyperparameters,
  loss: Callable[[Params], jax.Array] | None = None,
  loss_is_finite: jax.Array | bool = True,
) -> tuple[Params, State, dict[str, Number]]:
  """One step: new parameters and state, and metrics; `loss` of parameters is for optimizers of second order.

  A step that is skipped (`config.optim.skip_above`) changes nothing but the counts of skipped steps.
  """
  grads, whole, params = trainable(grads, how.frozen), params, trainable(params, how.frozen)
  norm = optax.tree.norm(grads)
  factor = schedules.factor(how.schedule, step, h)
  h = h._replace(rate=h.lr * factor)
  clipped = jax.tree.map(lambda g: g * jnp.minimum(1.0, h.clip / jnp.maximum(norm, 1e-16)), grads)
  if how.multiples and how.optimizer.by_epsilon:
    clipped = _over_epsilon(how.multiples, clipped)
  extra = {}
  if how.optimizer.second_order:
    assert loss is not None
    extra["obj_fn"] = of_trainable(loss, whole)
  direction, own = how.transformation(h).update(clipped, state.own, params, **extra)
  new = optax.apply_updates(params, _updates(how, direction, params, h, factor))
  after, metrics = state._replace(own=own), {"grad_norm": norm, "lr": h.rate}
  if how.averages:
    average = jax.tree.map(lambda a, p: h.average * a + (1 - h.average) * p, state.average, new)
    after = after._replace(average=average, steps=state.steps + 1)
  if how.skips:
    spike = _is_spike(norm, state, h) | ~(loss_is_finite & jnp.isfinite(optax.tree.norm(new)))
    new, after = _unless(spike, (params, state), (new, after), norm)
    metrics["skipped"] = after.skipped
  return merged(whole, new), after, metrics


def _over_epsilon(multiples: parametrization.Multiples, grads: Params) -> Params:
  """Gradients divided by the multiples c of epsilon: g / (|g| + e c) is (g / c) / (|g / c| + e)."""
  sizes = {name: epsilon for name, _, _, _, epsilon in multiples}

  def divided(path: Path, g: jax.Array) -> jax.Array:
    return g / parametrization.over(sizes.get(dotted(path), 1.0), g)

  return jax.tree_util.tree_map_with_path(divided, grads)


def _updates(how: How, direction: Params, params: Params, h: Hyperparameters, factor: jax.Array) -> Params:
  """What is added to the parameters: learning rate and weight decay applied, unless the optimizer does it itself."""
  if how.optimizer.sets_rate:
    return direction
  rate, decay = _multiples(how, params, h)

  def shrinking(r: Number) -> Number:
    return h.weight_decay * (factor if how.independent_decay else h.rate * r)

  def scaled(d: jax.Array, p: jax.Array, r: Number, w: Number) -> jax.Array:
    return -h.rate * r * d - shrinking(r) * w * p

  return jax.tree.map(scaled, direction, params, rate, decay)


def _multiples(how: How, params: Params, h: Hyperparameters) -> tuple[PyTree, PyTree]:
  """The factors of each parameter's learning rate and of its weight decay."""

  def rate_of(index: int) -> Number:
    return h.rates[index] if index >= 0 else 1.0

  def decay_of(path: Path, index: int) -> Number:
    return h.decays[index] if index >= 0 else float(how.labels.at(path).is_matrix)

  rate = jax.tree.map(rate_of, first_matches(params, how.rates))
  decay = jax.tree_util.tree_map_with_path(decay_of, first_matches(params, how.decays))
  if how.multiples:
    rates = {name: multiple for name, _, multiple, _, _ in how.multiples}
    decays = {name: multiple for name, _, _, multiple, _ in how.multiples}
    rate, decay = (_times(tree, multiples, params) for tree, multiples in ((rate, rates), (decay, decays)))
  return rate, decay


def _times(tree: PyTree, multiples: dict[str, parametrization.Number], params: Params) -> PyTree:
  """A tree of numbers, one for each parameter, times the multiples of those that have one."""

  def product(path: Path, x: Number, p: jax.Array) -> jax.typing.ArrayLike:
    return x * parametrization.over(multiples.get(dotted(path), 1.0), p)

  return jax.tree_util.tree_map_with_path(product, tree, params)


def _is_spike(norm: jax.Array, state: State, h: Hyperparameters) -> jax.Array:
  """Whether the gradient norm is `skip_above` times its average, or not finite."""
  usual = state.norm / jnp.maximum(1 - NORM_DECAY ** state.taken.astype(jnp.float32), 1e-6)
  return ((state.taken >= SETTLED) & (norm > h.skip_above * usual)) | ~jnp.isfinite(norm)


def _unless(
  spike: jax.Array, before: tuple[Params, State], after: tuple[Params, State], norm: jax.Array
) -> tuple[Params, State]:
  """Parameters and state after a step, or those before it where it is skipped; and the counts of skipped steps."""
  new, stepped = after
  mean = NORM_DECAY * before[1].norm + (1 - NORM_DECAY) * norm
  stepped = stepped._replace(norm=mean, taken=before[1].taken + 1)
  new, stepped = jax.tree.map(lambda old, new: jnp.where(spike, old, new), before, (new, stepped))
  in_a_row = jnp.where(spike, before[1].skipped_in_a_row + 1, 0)
  return new, stepped._replace(skipped=before[1].skipped + spike, skipped_in_a_row=in_a_row)
