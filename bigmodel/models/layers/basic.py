"""Projections, norms and feed-forward blocks, with logical axis names on every parameter."""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigmodel.models.layers import initial
from bigmodel.models.layers.roles import Parameter, Role, labelled


def squared_relu(x: jax.Array) -> jax.Array:
  return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {
  "gelu": jax.nn.gelu,  # the tanh approximation, as in GPT-2
  "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "relu2": squared_relu,
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
}
GATED = {"swiglu": jax.nn.silu, "reglu": jax.nn.relu}  # multiplied by a gate (Shazeer 2020)


@dataclasses.dataclass(frozen=True)
class Matrix:
  """The initial values of a projection: W ~ N(0, scale^2 / fan_in), and zero for its bias."""

  axes: tuple[str, str]
  role: Role
  scale: float = 1.0
  bias: bool = False


def projection(
  module: nn.Module, name: str, x: jax.Array, width: int, matrix: Matrix, result: DTypeLike | None = None
) -> jax.Array:
  """Returns x @ W [fan_in, width], plus the bias if the matrix has one.

  `result` is the dtype of the sum (default: that of x). Outputs that enter a softmax or a loss need float32.
  """
  axes, role, fan_in, dtype = matrix.axes, matrix.role, x.shape[-1], result or x.dtype
  init = initial.normal(matrix.scale * fan_in**-0.5)
  weight = parameter(module, name, labelled(init, axes, role), (fan_in, width))
  out = with_gathered(functools.partial(times, result=dtype), x, weight, axes)
  bias_role = role if role in (Role.QUERY, Role.BRANCH_END) else Role.BIAS
  return plus_bias(module, f"{name}_bias", out, axes[1], bias_role) if matrix.bias else out


def outputs(module: nn.Module, x_BxF: jax.Array, width: int, axis: str = "embed") -> jax.Array:
  """Returns the outputs float32[B, width] of a model of examples, by the matrix `output` and its bias."""
  return projection(module, "output", x_BxF, width, Matrix((axis, "outputs"), Role.OUTPUT, bias=True), jnp.float32)


def plus_bias(module: nn.Module, name: str, x: jax.Array, axis: str, role: Role = Role.BIAS) -> jax.Array:
  """Returns x plus a bias along the last axis, which is zero initially."""
  return x + repeated(zeros(module, name, x.shape[-1:], (axis,), role), x.shape, (axis,), x.dtype)


def exact_products(dtype: DTypeLike) -> contextlib.AbstractContextManager[object]:
  """Returns a context in which products of a float32 model are traced at the highest precision.

  Otherwise accelerators multiply float32 numbers as bfloat16 or TF32. Models of other dtypes are not affected.
  """
  return jax.default_matmul_precision("highest") if dtype == jnp.float32 else contextlib.nullcontext()


def times(x: jax.Array, weight: jax.Array, result: DTypeLike | None = None) -> jax.Array:
  """Returns x @ weight in the dtype `result` (default: that of x).

  The gradient has the memory order of the weight: a transposed gradient takes a CPU twice as long.
  """
  return _times(x, weight, jnp.dtype(result or x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _times(x: jax.Array, weight: jax.Array, result: np.dtype) -> jax.Array:
  return jnp.matmul(x, weight, preferred_element_type=result)


def _times_forward(x: jax.Array, weight: jax.Array, result: np.dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # This calls the product and not `_times`, because policies of rematerialization do not see inside `_times`.
  return jnp.matmul(x, weight, preferred_element_type=result), (x, weight)


def _times_backward(
  result: np.dtype, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del result
  x, weight = kept
  gradient, rows = gradient.astype(x.dtype), tuple(range(x.ndim - 1))
  return gradient @ weight.T, jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))


_times.defvjp(_times_forward, _times_backward)


def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the einsum of two arrays of one dtype as float32, for inputs of a softmax or a loss.

  The backward products have operands of the arrays' dtype, because float32 operands would be several times slower.
  """
  return _einsum(subscripts, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _einsum_forward(subscripts: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32), (a, b)


def _einsum_backward(
  subscripts: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  a, b = kept
  gradient = gradient.astype(a.dtype)
  (of_a,) = jax.linear_transpose(lambda a: jnp.einsum(subscripts, a, b), a)(gradient)
  (of_b,) = jax.linear_transpose(lambda b: jnp.einsum(subscripts, a, b), b)(gradient)
  return of_a, of_b


_einsum.defvjp(_einsum_forward, _einsum_backward)


def parameter(module: nn.Module, name: str, init: Callable[..., Parameter], shape: tuple[int, ...]) -> jax.Array:
  """Creates a float32 parameter. `init` comes from `labelled`, which boxes the value with its axes and role."""
  return cast(jax.Array, module.param(name, init, shape, jnp.float32))  # Flax unboxes the value


def zeros(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], role: Role) -> jax.Array:
  """Creates a float32 parameter whose initial value is zero."""
  return parameter(module, name, labelled(nn.initializers.zeros, axes, role), shape)


def normal(
  module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], role: Role, deviation: float
) -> jax.Array:
  """Creates a float32 parameter with initial values ~ N(0, deviation^2)."""
  return parameter(module, name, labelled(initial.normal(deviation), axes, role), shape)


def repeated(parameter: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], dtype: DTypeLike) -> jax.Array:
  """Returns a float32 parameter in `dtype`, repeated along new leading axes to `shape`; `axes` are the parameter's.

  The gradient is summed in float32, because a bfloat16 sum of ones stops at 256.
  """
  return _repeated(parameter, shape, axes, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _repeated(parameter: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], dtype: np.dtype) -> jax.Array:
  return jnp.broadcast_to(gathered(parameter.astype(dtype), axes), shape)


def _repeated_forward(
  parameter: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], dtype: np.dtype
) -> tuple[jax.Array, None]:
  return _repeated(parameter, shape, axes, dtype), None


def _repeated_backward(
  shape: tuple[int, ...], axes: tuple[str, ...], dtype: np.dtype, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
  del dtype
  new = tuple(range(len(shape) - len(axes)))
  return (constrain(jnp.sum(gradient.astype(jnp.float32), axis=new), axes),)


_repeated.defvjp(_repeated_forward, _repeated_backward)


def in_training(module: nn.Module) -> bool:
  """Whether the model is applied in training, in which case the caller gives a key named 'dropout'."""
  return module.has_rng("dropout")


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
  """Applies dropout in training: zeros a share `rate` of `x`."""
  if not rate or not in_training(module):
    return x
  keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Constrains the sharding of an array by its logical axes; skips arrays without sharded axes to compile faster."""
  return nn.with_logical_constraint(x, axes) if is_spread(axes) else x


def is_spread(axes: tuple[str | None, ...]) -> bool:
  """Whether the current mesh shards an array with these logical axes."""
  spec = nn.logical_to_mesh_axes(axes, nn.get_logical_axis_rules())
  return spec is not None and any(spec)


def gathered(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Returns a weight that is gathered along `embed`, along which it may be sharded.

  The constraint is explicit and comes after the cast, so that the compiler gathers weights in the
  narrower dtype and reduce-scatters their gradients. Otherwise it may reduce activations instead.
  """
  return _gathered(weight, axes) if is_spread(axes) else weight


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
  """Returns `multiply(x, weight)`, with the weight in x's dtype and gathered along `embed` if it is sharded.

  Within `gathering_again`, only the shards are kept for the backward pass.
  """
  if _GATHERING_AGAIN.get() and is_spread(axes):
    return _with_gathered(multiply, axes, x, weight)
  return multiply(x, gathered(weight.astype(x.dtype), axes))


_GATHERING_AGAIN = contextvars.ContextVar("gathering_again", default=False)


@contextlib.contextmanager
def gathering_again() -> Iterator[None]:
  """Makes the backward pass of products that are traced within it gather their weights again.

  So the gathered weights of all layers need not stay in memory after the forward pass.
  """
  before = _GATHERING_AGAIN.set(True)
  try:
    yield
  finally:
    _GATHERING_AGAIN.reset(before)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gathered(multiply: Callable, axes: tuple[str, ...], x: jax.Array, weight: jax.Array) -> jax.Array:
  # Keep the weight sharded up to here; otherwise the compiler may keep the gathered weight for the backward pass.
  weight = nn.with_logical_constraint(weight.astype(x.dtype), axes)
  return multiply(x, gathered(weight, axes))


def _with_gathered_forward(multiply: Callable, axes: tuple[str, ...], x: jax.Array, weight: jax.Array) -> tuple:
  return _with_gathered(multiply, axes, x, weight), (x, weight)


def _with_gathered_backward(multiply: Callable, axes: tuple[str, ...], kept: tuple, gradient: jax.Array) -> tuple:
  x, weight = kept
  weight, cast = jax.vjp(lambda weight: nn.with_logical_constraint(weight.astype(x.dtype), axes), weight)
  # The compiler removes the recomputed product, which is unused.
  of_x, of_weight = jax.vjp(lambda x, weight: multiply(x, gathered(weight, axes)), x, weight)[1](gradient)
  return of_x, *cast(of_weight)


_with_gathered.defvjp(_with_gathered_forward, _with_gathered_backward)


class RMSNorm(nn.Module):
  """x / rms(x) * scale (Zhang and Sennrich 2019), computed in float32."""

  axis_name: str = "norm"
  epsilon: float = 1e-6
  role: Role = Role.NORM

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = labelled(nn.initializers.ones, (self.axis_name,), self.role)
    scale = parameter(self, "scale", ones, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
    return (normed * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean) / deviation * scale + bias (Ba et al. 2016), computed in float32."""

  axis_name: str = "norm"
  epsilon: float = 1e-6
  role: Role = Role.NORM

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = labelled(nn.initializers.ones, (self.axis_name,), self.role)
    scale = parameter(self, "scale", ones, (x.shape[-1],))
    bias = zeros(self, "bias", (x.shape[-1],), (self.axis_name,), self.role)
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    normed = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + self.epsilon)
    return (normed * scale + bias).astype(x.dtype)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def norm_params(norm: str, width: int) -> int:
  return width * (2 if norm == "layer" else 1)


def activate(name: str, up: jax.Array, gate: jax.Array | None) -> jax.Array:
  """Applies the nonlinearity of a feed-forward block."""
  if name in GATED:
    assert gate is not None
    return up * GATED[name](gate)
  return ACTIVATIONS[name](up)


class FeedForward(nn.Module):
  """A feed-forward block, width -> feed_forward -> width; gated activations need a third matrix."""

  feed_forward: int
  activation: str
  out_scale: float
  bias: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    F, inward = self.feed_forward, Matrix(("embed", "mlp"), Role.HIDDEN, bias=self.bias)
    up_BxTxF = projection(self, "up", x_BxTxD, F, inward)
    gate_BxTxF = projection(self, "gate", x_BxTxD, F, inward) if self.activation in GATED else None
    hidden_BxTxF = constrain(activate(self.activation, up_BxTxF, gate_BxTxF), ("batch", "length", "mlp"))
    outward = Matrix(("mlp", "embed"), Role.BRANCH_END, self.out_scale, self.bias)
    return projection(self, "down", hidden_BxTxF, x_BxTxD.shape[-1], outward)


def sinusoids(positions: np.ndarray, width: int) -> jax.Array:
  """Returns sines, then cosines, at `width / 2` wavelengths (Vaswani et al. 2017, section 3.5), float32[..., width]."""
  frequency = 10_000.0 ** -(np.arange(width // 2) / (width // 2))
  angle = positions[..., None] * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(jnp.float32)
