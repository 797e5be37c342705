"""Projections, norms and feed-forward blocks, with logical axis names on every parameter."""

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
  return x @ weight.astype(x.dtype)


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


class FeedForward(nn.Module):
  """width -> feed_forward -> width; SwiGLU has a third matrix (Shazeer 2020)."""

  feed_forward: int
  activation: str
  out_scale: float

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    up_BxTxF = projection(self, "up", x_BxTxD, self.feed_forward, ("embed", "mlp"))
    if self.activation == "swiglu":
      up_BxTxF = up_BxTxF * jax.nn.silu(projection(self, "gate", x_BxTxD, self.feed_forward, ("embed", "mlp")))
    elif self.activation == "gelu":
      up_BxTxF = jax.nn.gelu(up_BxTxF)
    else:
      up_BxTxF = jnp.square(jax.nn.relu(up_BxTxF))
    return projection(self, "down", up_BxTxF, x_BxTxD.shape[-1], ("mlp", "embed"), self.out_scale)
