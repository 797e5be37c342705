"""Optimizers: a direction for each parameter from its gradients; learning rates, decay and rules come after.

Most are optax's. Parameters of a stack have their layers side by side in one array: what an optimizer says of a whole
parameter (its norm, its factors, its orthogonal step) is said of each layer's.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bigmodel.models.layers.roles import Labels, Path
from bigmodel.optim import shampoo

INTERVAL = 10  # steps between curvatures of Sophia, roots of Shampoo and bases of SOAP
Transformation: Any = optax.GradientTransformation  # whose types say less than they could
UPDATE_SCALES = ("match_rms_adamw", "spectral", "original")


class Step(enum.Enum):
  """What the size of an optimizer's step follows. muP's learning rates are derived from it; see `parametrization`.

  Only GRADIENT steps are larger where gradients are larger. The size of all others does not depend on the gradients'
  scale, down to `epsilon`.
  """

  ENTRY = "the rms of a parameter's step does not depend on its shape: Adam's kind, and what is grafted on it"
  GRADIENT = "the step is proportional to the gradient: SGD's kind"
  SPECTRAL = "hidden matrices move by an orthogonal matrix times `spectral_size` of their shape, the rest as ENTRY"
  PARAMETER = "the step is proportional to the parameter's own size"


ADAM = ("beta1", "beta2", "epsilon")  # the fields that Adam reads, which many optimizers run for some parameters


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`direction(h, labels)` is what the learning rate multiplies, for parameters with these labels.

  Its state does not depend on the hyperparameters `h`.
  """

  direction: Callable[[Any, Labels], Any]
  reads: tuple[str, ...]  # of SPECIFIC, the fields of `config.optim` that change its steps
  step: Step = Step.ENTRY
  spectral_size: Callable[[tuple[int, ...]], float] | None = None  # of SPECTRAL steps
  second_order: bool = False  # asks for the loss as a function of parameters
  by_epsilon: bool = False  # a scale of the gradients matters to it by `epsilon` alone
  own_rate: bool = False  # sets the size of its steps itself: `direction` is a whole update


def _adam(h: Any, labels: Labels) -> Any:
  del labels
  return optax.scale_by_adam(h.beta1, h.beta2, h.epsilon)


def _sgd(h: Any, labels: Labels) -> Any:
  del h, labels
  return optax.identity()


def _momentum(h: Any, labels: Labels) -> Any:
  del labels
  return optax.trace(h.momentum)


def _lion(h: Any, labels: Labels) -> Any:
  del labels
  return optax.scale_by_lion(h.beta1, h.beta2)


def _sophia(h: Any, labels: Labels) -> Any:
  """Sophia-H (Liu et al. 2023): Hutchinson's estimate of the Hessian's diagonal every INTERVAL steps."""
  del labels
  downhill = contrib.sophia(1.0, h.beta1, h.beta2, h.epsilon, 0.0, None, h.gamma, 1.0, INTERVAL, _curvature())
  return optax.chain(downhill, optax.scale(-1.0))


def _curvature() -> Any:
  """As optax's estimate of the Hessian's diagonal, but derived backwards twice: meshes need rules that are only so."""

  def update(grads: Any, state: Any, params: Any = None, obj_fn: Any = None, **_: Any) -> tuple[Any, Any]:
    del grads
    key, own = jax.random.split(state.key)
    signs = optax.tree.random_like(own, params, jax.random.rademacher, dtype=jnp.float32)
    products = jax.grad(lambda p: optax.tree.vdot(jax.grad(obj_fn)(p), signs))(params)
    return jax.tree.map(jnp.multiply, products, signs), contrib.HutchinsonState(key)

  make: Any = optax.GradientTransformationExtraArgs
  return make(contrib.hutchinson_estimator_diag_hessian().init, update)


def _adafactor(h: Any, labels: Labels) -> Any:
  """As optax.adafactor: factored second moments, clipped by block, and in proportion to each parameter's scale."""
  del h
  inner = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
  return layerwise(inner, labels.stacks)


def layerwise(inner: Any, stacks: set[str]) -> Any:
  """`inner` for each layer of a stack, named by its outermost name, and for all other parameters together."""

  def parts(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rest = {name: x for name, x in tree.items() if name not in stacks}
    return rest, {name: {name: x} for name, x in tree.items() if name in stacks}

  def init(params: Any) -> Any:
    rest, stacks = parts(params)
    return inner.init(rest), {n: jax.vmap(inner.init)(x) for n, x in stacks.items()}

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    (rest, stacks), (own, owns) = parts(grads), parts(params)
    new, kept = inner.update(rest, state[0], own)
    found = {n: jax.vmap(inner.update)(x, state[1][n], owns[n]) for n, x in stacks.items()}
    return {**new, **{n: u[n] for n, (u, _) in found.items()}}, (kept, {n: s for n, (_, s) in found.items()})

  return Transformation(init, update)


def _for_hidden(inner: Any, h: Any, labels: Labels) -> Any:
  """`inner` for hidden matrices, Adam for all other parameters."""

  def choose(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "hidden" if labels.at(path).is_hidden else "adam", params)

  return optax.partition({"hidden": inner, "adam": _adam(h, labels)}, choose)


def _shampoo(h: Any, labels: Labels) -> Any:
  return _for_hidden(shampoo.scale_by_shampoo(h.beta1, h.beta2, h.epsilon, INTERVAL), h, labels)


def _soap(h: Any, labels: Labels) -> Any:
  return _for_hidden(shampoo.scale_by_soap(h.beta1, h.beta2, h.epsilon, INTERVAL), h, labels)


def update_size(scale: str, shape: tuple[int, ...]) -> float:
  """What an orthogonal step of a kernel of this shape is multiplied by."""
  into, out = math.prod(shape[:-1]), shape[-1]
  return {
    "match_rms_adamw": 0.2 * math.sqrt(max(into, out)),
    "spectral": math.sqrt(out / into),
    "original": math.sqrt(max(1.0, out / into)),
  }[scale]


def _muon(scale: str) -> Callable[[Any, Labels], Any]:
  """Muon (Jordan et al. 2024) with Nesterov's momentum, its orthogonal steps made as large as `scale` says.

  The products of its Newton-Schulz iteration have the precision that the step is traced with: the highest in float32
  runs (`models.layers.basic.exact_products`), otherwise the default, which is bfloat16 on accelerators. The iteration
  was designed for bfloat16, and only needs singular values between about 0.7 and 1.2.

  `match_rms_adamw` is .2 sqrt(max(in, out)), the size of AdamW's (Liu et al. 2025); `spectral` sqrt(out / in), for
  which rates carry over between widths (Bernstein 2025); `original` sqrt(max(1, out / in)).
  """

  def make(h: Any, labels: Labels) -> Any:
    def dimensions(path: Path, x: Any) -> contrib.MuonDimensionNumbers:
      """All axes of a kernel but the last come in; layers and experts are side by side."""
      return contrib.MuonDimensionNumbers(tuple(range(labels.at(path).stacked, x.ndim - 1)), x.ndim - 1)

    def scaled(path: Path, x: Any) -> Any:
      return update_size(scale, x.shape[labels.at(path).stacked :]) * x

    by_path = jax.tree_util.tree_map_with_path
    orthogonal = contrib.scale_by_muon(
      beta=h.momentum, weight_dimension_numbers=lambda params: by_path(dimensions, params)
    )
    sized = optax.stateless(lambda updates, _: by_path(scaled, updates))
    return _for_hidden(optax.chain(orthogonal, sized), h, labels)

  return make


def _schedule_free(h: Any, labels: Labels) -> Any:
  """AdamW without momentum, averaged as Defazio et al. 2024 say; evaluated are the averages."""
  matrices = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: labels.at(path).is_matrix, params)
  decayed = optax.add_decayed_weights(h.weight_decay, mask=matrices)
  inner = optax.chain(optax.scale_by_adam(0.0, h.beta2, h.epsilon), decayed, optax.scale(-h.rate))
  return contrib.schedule_free(inner, h.rate, h.beta1)


def _prodigy(h: Any, labels: Labels) -> Any:
  """Prodigy (Mishchenko and Defazio 2023) finds the size of its steps; `lr` multiplies it, and is 1."""
  inner: Any = contrib.prodigy(h.rate, (h.beta1, h.beta2), eps=h.epsilon)

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, new = inner.update(grads, state, params)
    corrected = jnp.sqrt(1 - h.beta2**new.count) / (1 - h.beta1**new.count)
    decay = h.weight_decay * state.estim_lr * h.rate * corrected
    shrunk = lambda path, u, p: u - decay * p if labels.at(path).is_matrix else u
    return jax.tree_util.tree_map_with_path(shrunk, updates, params), new

  return Transformation(inner.init, update)


def known(update_scale: str = UPDATE_SCALES[0]) -> dict[str, Optimizer]:
  """Every optimizer by its name."""
  spectral_size = functools.partial(update_size, update_scale)
  return {
    "adamw": Optimizer(_adam, ADAM, by_epsilon=True),
    "sgd": Optimizer(_sgd, (), Step.GRADIENT),
    "momentum": Optimizer(_momentum, ("momentum",), Step.GRADIENT),
    "adafactor": Optimizer(_adafactor, (), Step.PARAMETER),
    "lion": Optimizer(_lion, ("beta1", "beta2")),
    "sophia": Optimizer(_sophia, (*ADAM, "gamma"), second_order=True),
    "muon": Optimizer(
      _muon(update_scale), (*ADAM, "momentum", "update_scale"), Step.SPECTRAL, spectral_size, by_epsilon=True
    ),
    "shampoo": Optimizer(_shampoo, ADAM, by_epsilon=True),
    "soap": Optimizer(_soap, ADAM, by_epsilon=True),
    "schedule_free": Optimizer(_schedule_free, ADAM, own_rate=True),
    "prodigy": Optimizer(_prodigy, ADAM, own_rate=True),
  }


NAMES = tuple(known())
# Fields of `config.optim` that only some optimizers read; all others are read by `optim.update`, for every optimizer.
SPECIFIC = (*ADAM, "momentum", "gamma", "update_scale")
