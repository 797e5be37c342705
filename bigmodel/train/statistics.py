"""The sizes of the activations, parameters, gradients and updates of every layer at a step.

A separate program computes them at some steps, so that the training step is the same with and without them.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel import optim
from bigmodel.models.layers.attention import HIDDEN
from bigmodel.models.layers.roles import Labels, dotted
from bigmodel.train import step as steps
from bigmodel.types import Params, PyTree

# Root mean squares: of each of "activation", "parameter", "gradient" and "update", by name, one for each layer.
LayerStatistics = dict[str, dict[str, list[jax.Array]]]


def activations(forward: Callable[[], object]) -> list[tuple[str, jax.Array]]:
  """The name and the output of every module, in the order of the calls that `forward` makes.

  The layers of a stack have one name. They must not be scanned, and no gradient may be taken through them.
  """
  outputs: list[tuple[str, jax.Array]] = []

  def record(
    method: Callable[..., PyTree],
    arguments: tuple[object, ...],
    keywords: dict[str, object],
    context: nn.module.InterceptorContext,
  ) -> PyTree:
    out = method(*arguments, **keywords)
    if context.method_name == "__call__" and not context.module.is_initializing():  # initializing only computes shapes
      name = "/".join(context.module.path) or type(context.module).__name__.lower()
      outputs.append((name, (out[0] if isinstance(out, tuple) else out).astype(jnp.float32)))
    return out

  with nn.intercept_methods(record):
    forward()
  return outputs


def of_step(
  recipe: steps.Recipe, real_rows: dict[str, int], state: steps.State, rows: steps.Batch, h: optim.Hyperparameters
) -> LayerStatistics:
  """Root mean squares by layer for the next step of `state`; activations are those of its first microbatch.

  Frozen parameters have no gradient. Of padded tables only the `real_rows` count, and of logits only those that are
  not hidden.
  """
  how, gradient = recipe.how, steps.gradients(recipe, state, rows, h)

  def loss(params: Params) -> jax.Array:
    return steps.objective(recipe, h, params, *gradient.first)[0]

  finite = jnp.isfinite(gradient.measured["loss"])
  new, _, _ = optim.update(how, gradient.of_params, state.opt_state, state.params, state.step, h, loss, finite)
  outputs: dict[str, list[jax.Array]] = {}
  for name, x in activations(lambda: loss(state.params)):
    outputs.setdefault(name, []).append(_visible(x))
  updates = jax.tree.map(jnp.subtract, new, state.params)
  trees = {"parameter": state.params, "gradient": gradient.of_params, "update": updates}
  return {"activation": outputs, **{kind: _by_layer(tree, how.labels, real_rows) for kind, tree in trees.items()}}


def _visible(x: jax.Array) -> jax.Array:
  """The root mean square of an output without hidden logits."""
  visible = ~(x <= HIDDEN / 2)  # written so that NaN is visible
  return jnp.sqrt(jnp.sum(jnp.where(visible, x, 0) ** 2) / jnp.sum(visible))


def _by_layer(tree: PyTree, labels: Labels, real_rows: dict[str, int]) -> dict[str, list[jax.Array]]:
  by_name = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    name = dotted(path)
    layers = list(x) if labels.at(path).in_stack else [x[: real_rows[name]] if name in real_rows else x]
    by_name[name] = [jnp.sqrt(jnp.mean(layer**2)) for layer in layers]
  return by_name
