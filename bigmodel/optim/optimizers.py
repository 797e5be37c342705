"""The built-in optimizers: each decorated function is one, and its name is a value of `optim.name`.

A new one is one more function. `definitions` says what its parameters can be and what it returns.

Most are optax's. The parameters of a stack of layers lie side by side in one array; what an optimizer does with a whole
parameter (its norm, its factors, its orthogonal step) it does with each layer's.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bigmodel.declarations import NOT_NEGATIVE, TRACED, Field, OneOf, Value
from bigmodel.models.layers.roles import Labels, Path
from bigmodel.optim import kronecker
from bigmodel.optim.definitions import COMMON, Optimizer, Step, optimizer
from bigmodel.optim.traced import Number
from bigmodel.types import Params, PyTree

INTERVAL = 10  # steps between curvatures of Sophia, roots of Shampoo and bases of SOAP
UPDATE_SCALES = ("match_rms_adamw", "spectral", "original")


@optimizer(step=Step.ENTRY, by_epsilon=True)
def adamw(beta1: Number, beta2: Number, epsilon: Number) -> optax.GradientTransformation:
  return optax.scale_by_adam(beta1, beta2, epsilon)  # the weight decay is applied outside, as for all


@optimizer(step=Step.GRADIENT)
def sgd() -> optax.GradientTransformation:
  return optax.identity()


@optimizer(step=Step.GRADIENT)
def momentum(momentum: Number) -> optax.GradientTransformation:
  return optax.trace(momentum)


@optimizer(step=Step.PARAMETER)
def adafactor(labels: Labels) -> optax.GradientTransformation:
  """As optax.adafactor: factored second moments, clipped by block, and in proportion to each parameter's scale."""
  inner = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
  return layerwise(inner, labels.stacks)


@optimizer(step=Step.ENTRY)
def lion(beta1: Number, beta2: Number) -> optax.GradientTransformation:
  return optax.scale_by_lion(beta1, beta2)


# Fields that were declared when `added_later` did not exist are part of every run's id; new ones need `added_later`.
_GAMMA = Field(0.01, "of sophia: what the curvature is multiplied by", NOT_NEGATIVE, TRACED)
_UPDATE_SCALE = Field(UPDATE_SCALES[0], "of muon: the size of its steps", OneOf(UPDATE_SCALES))


@optimizer(step=Step.ENTRY, fields={"gamma": _GAMMA}, second_order=True)
def sophia(beta1: Number, beta2: Number, epsilon: Number, gamma: Number) -> optax.GradientTransformation:
  """Sophia-H (Liu et al. 2023): Hutchinson's estimate of the Hessian's diagonal every INTERVAL steps."""
  downhill = contrib.sophia(1.0, beta1, beta2, epsilon, 0.0, None, gamma, 1.0, INTERVAL, _curvature())
  return optax.chain(downhill, optax.scale(-1.0))


def _curvature() -> optax.GradientTransformationExtraArgs:
  """As optax's estimate of the Hessian's diagonal, but by reverse mode twice: some sharded operations lack forward."""

  def update(
    updates: PyTree,
    state: PyTree,
    params: Params = None,
    obj_fn: Callable[[Params], jax.Array] | None = None,
    **_: object,
  ) -> tuple[PyTree, contrib.HutchinsonState]:
    del updates
    assert obj_fn is not None
    key, key_of_signs = jax.random.split(state.key)
    signs = optax.tree.random_like(key_of_signs, params, jax.random.rademacher, dtype=jnp.float32)
    products = jax.grad(lambda p: optax.tree.vdot(jax.grad(obj_fn)(p), signs))(params)
    return jax.tree.map(jnp.multiply, products, signs), contrib.HutchinsonState(key)

  return optax.GradientTransformationExtraArgs(contrib.hutchinson_estimator_diag_hessian().init, update)


def update_size(scale: str, shape: tuple[int, ...]) -> float:
  """The factor of an orthogonal step of a kernel of this shape."""
  into, out = math.prod(shape[:-1]), shape[-1]
  return {
    "match_rms_adamw": 0.2 * math.sqrt(max(into, out)),
    "spectral": math.sqrt(out / into),
    "original": math.sqrt(max(1.0, out / into)),
  }[scale]


def _muon_size(shape: tuple[int, ...], compiled: Mapping[str, Value]) -> float:
  return update_size(str(compiled["update_scale"]), shape)


@optimizer(step=Step.SPECTRAL, fields={"update_scale": _UPDATE_SCALE}, spectral_size=_muon_size, by_epsilon=True)
def muon(
  labels: Labels, beta1: Number, beta2: Number, epsilon: Number, momentum: Number, update_scale: str
) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) with Nesterov's momentum for hidden matrices, Adam for the rest.

  The products of its Newton-Schulz iteration have the precision that the step is traced with: the highest in float32
  runs (`models.layers.basic.exact_products`), otherwise the default, which is bfloat16 on accelerators. The iteration
  was designed for bfloat16, and only needs singular values between about 0.7 and 1.2.

  `update_scale` sets the size of its orthogonal steps: `match_rms_adamw` is .2 sqrt(max(in, out)), the size of AdamW's
  (Liu et al. 2025); `spectral` sqrt(out / in), for which rates carry over between widths (Bernstein 2025); `original`
  sqrt(max(1, out / in)).
  """

  def dimensions(path: Path, x: jax.Array) -> contrib.MuonDimensionNumbers:
    """All axes of a kernel but the last are inputs; layers and experts are a batch."""
    return contrib.MuonDimensionNumbers(tuple(range(labels.at(path).stacked, x.ndim - 1)), x.ndim - 1)

  def scaled(path: Path, x: jax.Array) -> jax.Array:
    return update_size(update_scale, x.shape[labels.at(path).stacked :]) * x

  by_path = jax.tree_util.tree_map_with_path
  orthogonal = contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=lambda params: by_path(dimensions, params))
  sized = optax.stateless(lambda updates, _: by_path(scaled, updates))
  return _for_hidden(optax.chain(orthogonal, sized), labels, optax.scale_by_adam(beta1, beta2, epsilon))


@optimizer(step=Step.ENTRY, by_epsilon=True)
def shampoo(labels: Labels, beta1: Number, beta2: Number, epsilon: Number) -> optax.GradientTransformation:
  inner = kronecker.scale_by_shampoo(beta1, beta2, epsilon, INTERVAL)
  return _for_hidden(inner, labels, optax.scale_by_adam(beta1, beta2, epsilon))


@optimizer(step=Step.ENTRY, by_epsilon=True)
def soap(labels: Labels, beta1: Number, beta2: Number, epsilon: Number) -> optax.GradientTransformation:
  inner = kronecker.scale_by_soap(beta1, beta2, epsilon, INTERVAL)
  return _for_hidden(inner, labels, optax.scale_by_adam(beta1, beta2, epsilon))


@optimizer(step=Step.ENTRY, averages=True)
def schedule_free(
  labels: Labels, beta1: Number, beta2: Number, epsilon: Number, learning_rate: Number, weight_decay: Number
) -> optax.GradientTransformation:
  """AdamW without momentum, averaged as in Defazio et al. 2024; the averages are evaluated."""

  def matrices(params: Params) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: labels.at(path).is_matrix, params)

  decayed = optax.add_decayed_weights(weight_decay, mask=matrices)
  inner = optax.chain(optax.scale_by_adam(0.0, beta2, epsilon), decayed, optax.scale(-learning_rate))
  return contrib.schedule_free(inner, learning_rate, beta1)


@optimizer(step=Step.ENTRY)
def prodigy(
  labels: Labels, beta1: Number, beta2: Number, epsilon: Number, learning_rate: Number, weight_decay: Number
) -> optax.GradientTransformation:
  """Prodigy (Mishchenko and Defazio 2023) estimates the size of its steps; `lr` multiplies it, and is 1."""
  inner = contrib.prodigy(learning_rate, (beta1, beta2), eps=epsilon)

  def update(updates: PyTree, state: PyTree, params: Params = None) -> tuple[PyTree, PyTree]:
    updates, new = inner.update(updates, state, params)
    assert isinstance(new, contrib.ProdigyState)
    corrected = jnp.sqrt(1 - beta2**new.count) / (1 - beta1**new.count)
    decay = weight_decay * state.estim_lr * learning_rate * corrected

    def decayed(path: Path, u: jax.Array, p: jax.Array) -> jax.Array:
      return u - decay * p if labels.at(path).is_matrix else u

    return jax.tree_util.tree_map_with_path(decayed, updates, params), new

  return optax.GradientTransformation(inner.init, update)


def layerwise(inner: optax.GradientTransformation, stacks: set[str]) -> optax.GradientTransformation:
  """`inner` for each layer of a stack, named by its outermost name, and for all other parameters together."""

  def parts(tree: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, dict[str, PyTree]]]:
    rest = {name: x for name, x in tree.items() if name not in stacks}
    return rest, {name: {name: x} for name, x in tree.items() if name in stacks}

  def init(params: Params) -> PyTree:
    rest, stacked = parts(params)
    return inner.init(rest), {n: jax.vmap(inner.init)(x) for n, x in stacked.items()}

  def update(updates: PyTree, state: PyTree, params: Params = None) -> tuple[PyTree, PyTree]:
    (rest, stacked), (params_of_rest, params_of_stacks) = parts(updates), parts(params)
    new, state_of_rest = inner.update(rest, state[0], params_of_rest)
    assert isinstance(new, Mapping)
    update_layers: Callable[..., tuple[PyTree, PyTree]] = jax.vmap(inner.update)
    pairs = {n: update_layers(x, state[1][n], params_of_stacks[n]) for n, x in stacked.items()}
    return {**new, **{n: u[n] for n, (u, _) in pairs.items()}}, (state_of_rest, {n: s for n, (_, s) in pairs.items()})

  return optax.GradientTransformation(init, update)


def _for_hidden(
  inner: optax.GradientTransformation, labels: Labels, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
  """`inner` for hidden matrices, Adam for all other parameters."""

  def choose(params: Params) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: "hidden" if labels.at(path).is_hidden else "adam", params)

  return optax.partition({"hidden": inner, "adam": adam}, choose)


BUILT_IN: dict[str, Optimizer] = {name: value for name, value in globals().items() if isinstance(value, Optimizer)}
NAMES = tuple(BUILT_IN)
FIELDS = {name: field for value in BUILT_IN.values() for name, field in value.fields.items()}
# Fields of `config.optim` that only some optimizers read. All others have an effect with every optimizer.
SPECIFIC = (*COMMON, *FIELDS)
