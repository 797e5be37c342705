"""Projections, norms and feed-forward blocks, with logical axis names on every parameter."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.models.layers import initial

ACTIVATIONS = {
  "gelu": jax.nn.gelu,  # by tanh, as GPT-2 has it
  "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
}
GATED = {"swiglu": jax.nn.silu, "reglu": jax.nn.relu}  # Shazeer 2020: times a gate


def projection(
  module: nn.Module, name: str, x: jax.Array, width: int, axes: tuple[str, str], scale: float = 1.0, bias: bool = False
) -> jax.Array:
  """x @ W with W ~ N(0, scale^2 / fan_in), in x's dtype; with a bias that starts at zero."""
  fan_in = x.shape[-1]
  init = initial.normal(scale * fan_in**-0.5)
  weight: Any = module.param(name, nn.with_logical_partitioning(init, axes), (fan_in, width), jnp.float32)
  out = with_gathered(times, x, weight, axes)
  return out + zeros(module, f"{name}_bias", (width,), axes[1:], x.dtype) if bias else out


@jax.custom_vjp
def times(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x @ weight, whose gradient comes in the order of the weight: a transposed one takes a CPU twice as long."""
  return x @ weight


def _times_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, weight = kept
  rows = tuple(range(x.ndim - 1))
  return gradient @ weight.T, jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))


times.defvjp(lambda x, weight: (x @ weight, (x, weight)), _times_backward)


def zeros(
  module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], dtype: Any = jnp.float32
) -> jax.Array:
  """A parameter that starts at zero, in the dtype that it is used in."""
  weight: Any = module.param(name, nn.with_logical_partitioning(nn.initializers.zeros, axes), shape, jnp.float32)
  return gathered(weight.astype(dtype), axes)


def normal(
  module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], deviation: float, dtype: Any
) -> jax.Array:
  """A parameter ~ N(0, deviation^2), in the dtype that it is used in."""
  init = nn.with_logical_partitioning(initial.normal(deviation), axes)
  weight: Any = module.param(name, init, shape, jnp.float32)
  return gathered(weight.astype(dtype), axes)


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
  """Zeros in a share of `x`, where the caller gave a key for them: training does, evaluation does not."""
  if not rate or not module.has_rng("dropout"):
    return x
  keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Says where an array lies by its logical axes; nothing where no axis of it is spread, which compiles faster."""
  return nn.with_logical_constraint(x, axes) if _spread(axes) else x


def _spread(axes: tuple[str | None, ...]) -> bool:
  spec = nn.logical_to_mesh_axes(axes, nn.get_logical_axis_rules())
  return spec is not None and any(spec)


def gathered(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """A weight as it is multiplied: whole along `embed`, along which it may be stored in pieces.

  Said explicitly, and after the cast, so that the compiler gathers weights in the narrower
  type, and scatters the sums of their gradients; left to itself it may reduce activations.
  """
  return _gathered(weight, axes) if _spread(axes) else weight


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return nn.with_logical_constraint(weight, tuple("activation_embed" if axis == "embed" else axis for axis in axes))


def _gathered_forward(weight: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, None]:
  return _gathered(weight, axes), None


def _gathered_backward(axes: tuple[str, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
  return (nn.with_logical_constraint(gradient, axes),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def with_gathered(
  multiply: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, weight: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
  """`multiply(x, weight)` with the weight in x's dtype, and whole along `embed` if it is stored in pieces.

  Within `gathering_again`, what is kept for the gradients are the pieces.
  """
  if _GATHERING_AGAIN.get() and _spread(axes):
    return _with_gathered(multiply, axes, x, weight)
  return multiply(x, gathered(weight.astype(x.dtype), axes))


_GATHERING_AGAIN = contextvars.ContextVar("gathering_again", default=False)


@contextlib.contextmanager
def gathering_again() -> Iterator[None]:
  """While what is in it is traced, the backward pass of products gathers their weights again.

  The whole weights of all layers then need not stay in memory from the forward pass on.
  """
  before = _GATHERING_AGAIN.set(True)
  try:
    yield
  finally:
    _GATHERING_AGAIN.reset(before)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gathered(multiply: Callable, axes: tuple[str, ...], x: jax.Array, weight: jax.Array) -> jax.Array:
  # In pieces up to here: else the compiler may gather the weight before it is kept for the backward pass.
  weight = nn.with_logical_constraint(weight.astype(x.dtype), axes)
  return multiply(x, gathered(weight, axes))


def _with_gathered_forward(multiply: Callable, axes: tuple[str, ...], x: jax.Array, weight: jax.Array) -> tuple:
  return _with_gathered(multiply, axes, x, weight), (x, weight)


def _with_gathered_backward(multiply: Callable, axes: tuple[str, ...], kept: tuple, gradient: jax.Array) -> tuple:
  x, weight = kept
  weight, cast = jax.vjp(lambda weight: nn.with_logical_constraint(weight.astype(x.dtype), axes), weight)
  # The product that is computed here again is not used, and so left out by the compiler.
  of_x, of_weight = jax.vjp(lambda x, weight: multiply(x, gathered(weight, axes)), x, weight)[1](gradient)
  return of_x, *cast(of_weight)


_with_gathered.defvjp(_with_gathered_forward, _with_gathered_backward)


class RMSNorm(nn.Module):
  """x / rms(x) * scale (Zhang and Sennrich 2019), computed in float32."""

  axis_name: str = "norm"
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis_name,))
    scale: Any = self.param("scale", ones, (x.shape[-1],), jnp.float32)
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
    return (normed * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean) / deviation * scale + bias (Ba et al. 2016), computed in float32."""

  axis_name: str = "norm"
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis_name,))
    scale: Any = self.param("scale", ones, (x.shape[-1],), jnp.float32)
    bias = zeros(self, "bias", (x.shape[-1],), (self.axis_name,))
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    normed = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + self.epsilon)
    return (normed * scale + bias).astype(x.dtype)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def norm_params(norm: str, width: int) -> int:
  return width * (2 if norm == "layer" else 1)


def activate(name: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
  """The nonlinearity of a feed-forward block."""
  if name in GATED:
    assert gate is not None
    return up * GATED[name](gate)
  return ACTIVATIONS[name](up)


class FeedForward(nn.Module):
  """width -> feed_forward -> width; gated ones have a third matrix."""

  feed_forward: int
  activation: str
  out_scale: float
  bias: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    up_BxTxF = projection(self, "up", x_BxTxD, self.feed_forward, ("embed", "mlp"), bias=self.bias)
    gate_BxTxF = None
    if self.activation in GATED:
      gate_BxTxF = projection(self, "gate", x_BxTxD, self.feed_forward, ("embed", "mlp"), bias=self.bias)
    hidden_BxTxF = constrain(activate(self.activation, up_BxTxF, gate_BxTxF), ("batch", "length", "mlp"))
    return projection(self, "down", hidden_BxTxF, x_BxTxD.shape[-1], ("mlp", "embed"), self.out_scale, self.bias)


def sinusoids(positions: Any, width: int) -> jax.Array:
  """Sines, then cosines, at `width / 2` wavelengths (Vaswani et al. 2017, section 3.5), float32[..., width]."""
  frequency = 10_000.0 ** -(np.arange(width // 2) / (width // 2))
  angle = positions[..., None] * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(jnp.float32)
