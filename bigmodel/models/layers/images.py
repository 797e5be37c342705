"""Layers of image models: convolution, pooling, group normalisation. Images are [B, height, width, channels]."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.models.layers import initial
from bigmodel.models.layers.basic import gathered, parameter, plus_bias, zeros
from bigmodel.models.layers.roles import Role, labelled


@dataclasses.dataclass(frozen=True)
class Convolution:
  """A square convolution; with `groups`, output and input channels are split into that many groups."""

  channels: int
  size: int
  stride: int = 1
  padding: int = 0
  groups: int = 1
  bias: bool = False


def convolution(module: nn.Module, name: str, x_BxHxWxC: jax.Array, shape: Convolution, role: Role) -> jax.Array:
  """Applies the convolution, with initial weights ~ N(0, 2 / fan_in) (He et al. 2015), in this role."""
  channels_in = x_BxHxWxC.shape[-1] // shape.groups
  axes = ("kernel_height", "kernel_width", "inputs", "mlp")
  init = labelled(initial.normal((2 / (shape.size * shape.size * channels_in)) ** 0.5), axes, role)
  weight = parameter(module, name, init, (shape.size, shape.size, channels_in, shape.channels))
  out = jax.lax.conv_general_dilated(
    x_BxHxWxC,
    gathered(weight.astype(x_BxHxWxC.dtype), axes),
    (shape.stride, shape.stride),
    [(shape.padding, shape.padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=shape.groups,
  )
  return plus_bias(module, f"{name}_bias", out, "mlp") if shape.bias else out


def convolved(side: int, size: int, stride: int = 1, padding: int = 0) -> int:
  """Returns the side of an image after a convolution or pooling."""
  return (side + 2 * padding - size) // stride + 1


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
  return nn.max_pool(x, (size, size), (stride, stride), [(padding, padding)] * 2)  # pyright: ignore[reportArgumentType]


class GroupNorm(nn.Module):
  """Group normalisation in float32: normalises each example's groups of channels (Wu and He 2018).

  It replaces the batch normalisation of the papers, with as many parameters. So an example's
  outputs do not depend on other examples, and are the same on every mesh and in evaluation.
  """

  groups: int = 32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    B, H, W, C = x.shape
    ones = labelled(nn.initializers.ones, ("norm",), Role.NORM)
    scale = parameter(self, "scale", ones, (C,))
    bias = zeros(self, "bias", (C,), ("norm",), Role.NORM)
    G = math.gcd(self.groups, C)
    split = x.astype(jnp.float32).reshape(B, H * W, G, C // G)
    mean = jnp.mean(split, axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(split), axis=(1, 3), keepdims=True) - jnp.square(mean)
    normed = ((split - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-5)).reshape(B, H, W, C)
    return (normed * scale + bias).astype(x.dtype)
