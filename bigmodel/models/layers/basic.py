"""Projections, norms and feed-forward blocks, with logical axis names on every parameter."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = ("swiglu", "gelu", "relu2")


def projection(
  module: nn.Module, name: str, x: jax.Array, width: int, axes: tuple[str, str], scale: float = 1.0
) -> jax.Array:
  """x @ W with W ~ N(0, scale^2 / fan_in), in x's dtype."""
  fan_in = x.shape[-1]
  init = nn.initializers.normal(scale * fan_in**-0.5)
  weight: Any = module.param(name, nn.with_logical_partitioning(init, axes), (fan_in, width), jnp.float32)
  return x @ gathered(weight.astype(x.dtype), axes)


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


def activate(name: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
  """The nonlinearity of a feed-forward block; only swiglu has a gate."""
  if name == "swiglu":
    assert gate is not None
    return up * jax.nn.silu(gate)
  return jax.nn.gelu(up) if name == "gelu" else jnp.square(jax.nn.relu(up))


class FeedForward(nn.Module):
  """width -> feed_forward -> width; SwiGLU has a third matrix (Shazeer 2020)."""

  feed_forward: int
  activation: str
  out_scale: float

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    up_BxTxF = projection(self, "up", x_BxTxD, self.feed_forward, ("embed", "mlp"))
    gate_BxTxF = (
      projection(self, "gate", x_BxTxD, self.feed_forward, ("embed", "mlp")) if self.activation == "swiglu" else None
    )
    hidden_BxTxF = constrain(activate(self.activation, up_BxTxF, gate_BxTxF), ("batch", "length", "mlp"))
    return projection(self, "down", hidden_BxTxF, x_BxTxD.shape[-1], ("mlp", "embed"), self.out_scale)
