"""What every layer does at a step: how large its activations, parameters, gradients and updates are.

A program of its own computes them now and then, so that the training step is the same with and without them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel import optim
from bigmodel.models.layers.attention import HIDDEN
from bigmodel.models.layers.roles import Labels, dotted
from bigmodel.tasks import Task
from bigmodel.train import step as steps

# Root mean squares: of each of "activation", "parameter", "gradient" and "update", by name, one for each layer.
LayerStatistics = dict[str, dict[str, list[jax.Array]]]


def activations(forward: Callable[[], Any]) -> list[tuple[str, jax.Array]]:
  """The output of every module with what it is called, in the order of the calls that `forward` makes.

  The layers of a stack have one name; they must not be scanned, nor derived through.
  """
  found: list[tuple[str, jax.Array]] = []

  def record(function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
    out = function(*arguments, **keywords)
    if context.method_name == "__call__" and not context.module.is_initializing():  # of shapes alone
      name = "/".join(context.module.path) or type(context.module).__name__.lower()
      found.append((name, (out[0] if isinstance(out, tuple) else out).astype(jnp.float32)))
    return out

  with nn.intercept_methods(record):
    forward()
  return found


def of_step(
  apply: Callable,
  task: Task,
  how: optim.How,
  accumulate: int,
  real_rows: dict[str, int],
  state: Any,
  rows: Any,
  h: optim.Hyperparameters,
) -> LayerStatistics:
  """Root mean squares by layer, of the step that `state` is about to take; activations of its first microbatch.

  Frozen parameters have no gradient. Of padded tables only the `real_rows` count, and of logits those that are not
  hidden.
  """
  found = steps.gradients(apply, task, how, accumulate, state, rows, h)
  loss = lambda params: steps.objective(apply, task, h, params, *found.first)[0]
  finite = jnp.isfinite(found.measured["loss"])
  new, _, _ = optim.update(how, found.of_params, state.opt_state, state.params, state.step, h, loss, finite)
  outputs: dict[str, list[jax.Array]] = {}
  for name, x in activations(lambda: loss(state.params)):
    outputs.setdefault(name, []).append(_visible(x))
  updates = jax.tree.map(jnp.subtract, new, state.params)
  trees = {"parameter": state.params, "gradient": found.of_params, "update": updates}
  return {"activation": outputs, **{what: _by_layer(tree, how.labels, real_rows) for what, tree in trees.items()}}


def _visible(x: jax.Array) -> jax.Array:
  """The root mean square of an output, without logits that are hidden."""
  seen = ~(x <= HIDDEN / 2)  # what is not a number is to be seen
  return jnp.sqrt(jnp.sum(jnp.where(seen, x, 0) ** 2) / jnp.sum(seen))


def _by_layer(tree: Any, labels: Labels, real_rows: dict[str, int]) -> dict[str, list[jax.Array]]:
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    name = dotted(path)
    layers = list(x) if labels.at(path).in_stack else [x[: real_rows[name]] if name in real_rows else x]
    found[name] = [jnp.sqrt(jnp.mean(one**2)) for one in layers]
  return found
