"""The Transformer block that families share, and how a stack of blocks is run."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Recomputed
from bigmodel.models.layers.attention import Attend, Attention, Cache, Rotary, Start, attend_to_all
from bigmodel.models.layers.basic import GATED, NORMS, FeedForward, constrain, dropout, in_training, norm_params
from bigmodel.models.layers.experts import Auxiliary, Experts, slots
from bigmodel.models.layers.roles import Role
from bigmodel.types import Params

Results: TypeAlias = tuple[jax.Array, Auxiliary, Cache | None]

# block(parameters of one layer, x_BxTxD) -> (x_BxTxD, auxiliary numbers of its experts)
BlockFunction = Callable[[Params, jax.Array], tuple[jax.Array, Auxiliary]]
# run_blocks(block, parameters of all layers stacked, x_BxTxD) -> (x_BxTxD, their auxiliary numbers, summed over layers)
RunBlocks = Callable[[BlockFunction, Params, jax.Array], tuple[jax.Array, Auxiliary]]


@dataclasses.dataclass(frozen=True)
class BlockShape:
  """The sizes that determine the parameters and FLOPs of a block."""

  width: int
  layers: int  # of the stack; initial values keep the variance of the residual stream independent of depth
  heads: int
  kv_heads: int
  head_size: int
  feed_forward: int
  activation: str
  norm: str = "layer"
  norm_first: bool = True  # norms before attention and feed-forward, or after the residual sums
  gives_outputs: bool = False  # with norm_first=False: the last block's results give the outputs
  epsilon: float = 1e-6
  bias: bool = True
  qk_norm: bool = False
  rotary: Rotary | None = None
  relative: bool = False
  causal: bool = True
  cross: bool = False  # whether it also attends to a memory
  dropout: float = 0.0
  experts: int = 0  # 0: one dense feed-forward block
  experts_per_token: int = 2
  expert_group: int = 0
  expert_capacity: float = 1.25  # in training

  @property
  def matrices(self) -> int:
    """Parameters of the matrices of one feed-forward block."""
    return (3 if self.activation in GATED else 2) * self.width * self.feed_forward

  @property
  def projections(self) -> int:
    """Parameters of the matrices around attention, without a table of distances."""
    return 2 * self.width * self.head_size * (self.heads + self.kv_heads)

  def params(self) -> tuple[int, int]:
    """Returns (parameters of one layer, those of them that one token does not use)."""
    D, HK, GK = self.width, self.heads * self.head_size, self.kv_heads * self.head_size
    attention = self.projections + (HK + 2 * GK + D if self.bias else 0) + (2 * self.head_size if self.qk_norm else 0)
    distances = D * HK + 2 * HK if self.relative else 0
    biases = self.feed_forward * (2 if self.activation in GATED else 1) + D if self.bias and not self.experts else 0
    norms = norm_params(self.norm, D)
    mixture = D * self.experts + max(1, self.experts) * self.matrices
    total = (2 if self.cross else 1) * (attention + norms) + distances + norms + mixture + biases
    return total, max(0, self.experts - self.experts_per_token) * self.matrices if self.experts else 0

  def dense(self) -> float:
    """Returns forward FLOPs per token in one layer's products with parameters."""
    feed_forward = self.matrices
    if self.experts:
      feed_forward = self.experts_per_token * self.matrices + self.width * self.experts
    return 2.0 * ((2 if self.cross else 1) * self.projections + feed_forward)

  def attention(self, T: float, memory: float = 0) -> float:
    """Returns FLOPs per token in one layer's products of activations (scores and weighted sums), once per pair.

    A token at position t of a causal block attends to t + 1 keys: (T + 1) / 2 on average. Distances
    add a third product. Their table is computed once per batch, and is not counted.
    """
    HK, keys = self.heads * self.head_size, (T + 1) / 2 if self.causal else T
    distances = 2.0 * HK * keys if self.relative else 0.0
    return 4.0 * HK * (keys + memory) + distances

  def idle(self, T: int) -> float:
    """Returns forward FLOPs per token in one layer, in training, for empty slots of experts."""
    if not self.experts:
      return 0.0
    group = min(self.expert_group, T) if self.expert_group else T
    C = slots(group, self.experts, self.experts_per_token, self.expert_capacity)
    return 2.0 * (self.experts * C / group - self.experts_per_token) * self.matrices

  def recomputed(self, T: float, memory: float = 0) -> Recomputed:
    """Returns the FLOPs per token that the backward pass of one layer recomputes.

    `dots` keeps the products with parameters, also those of experts, and recomputes attention. `full` recomputes all
    but the last product, whose result no gradient needs.
    """
    attention, out = self.attention(T, memory), 0.0
    if self.norm_first and not self.experts:
      out = 2.0 * self.width * self.feed_forward
    return Recomputed(attention, self.dense() + attention + self.idle(int(T)) - out)


class Block(nn.Module):
  """x_BxTxD -> (x_BxTxD, auxiliary numbers of the experts, the new cache if any)."""

  shape: BlockShape
  dtype: DTypeLike
  attend: Attend
  training: bool = False  # in training, experts drop choices without a free slot

  @nn.compact
  def __call__(
    self,
    x_BxTxD: jax.Array,
    memory_BxSxD: jax.Array | None = None,
    cache: Cache | None = None,
    start: Start = 0,
  ) -> Results:
    shape = self.shape

    def norm(name: str, role: Role = Role.NORM) -> nn.Module:
      return NORMS[shape.norm](epsilon=shape.epsilon, role=role, name=name)

    attention = self._attention("attention", self.attend, shape.rotary, shape.relative)

    def attend(x: jax.Array) -> jax.Array:
      nonlocal cache
      x, cache = attention(x, None, cache, start)
      return x

    x_BxTxD = self._add(x_BxTxD, attend, norm("attention_norm"))
    if memory_BxSxD is not None:
      cross = self._attention("cross", attend_to_all, None, False)
      x_BxTxD = self._add(x_BxTxD, lambda x: cross(x, memory_BxSxD)[0], norm("cross_norm"))
    auxiliary: Auxiliary = {}

    def feed_forward(x: jax.Array) -> jax.Array:
      nonlocal auxiliary
      if not shape.experts:
        return FeedForward(shape.feed_forward, shape.activation, self._out_scale, shape.bias, name="feed_forward")(x)
      x, auxiliary = Experts(
        shape.experts,
        shape.experts_per_token,
        shape.expert_group,
        shape.expert_capacity,
        shape.feed_forward,
        shape.activation,
        self._out_scale,
        self.training,
        name="experts",
      )(x)
      return x

    x_BxTxD = self._add(
      x_BxTxD, feed_forward, norm("feed_forward_norm", Role.LAST_NORM if shape.gives_outputs else Role.NORM)
    )
    x_BxTxD = constrain(x_BxTxD, ("batch", "length", "activation_embed"))
    return x_BxTxD, auxiliary, cache

  def _add(self, x_BxTxD: jax.Array, part: Callable, norm: Callable) -> jax.Array:
    shape = self.shape
    if shape.norm_first:
      return x_BxTxD + dropout(self, part(norm(x_BxTxD)), shape.dropout)
    return norm(x_BxTxD + dropout(self, part(x_BxTxD), shape.dropout))

  def _attention(self, name: str, attend: Attend, rotary: Rotary | None, relative: bool) -> Attention:
    s = self.shape
    return Attention(
      s.heads,
      s.kv_heads,
      s.head_size,
      self._out_scale,
      self.dtype,
      attend,
      s.qk_norm,
      s.bias,
      rotary,
      relative,
      s.epsilon,
      name=name,
    )

  @property
  def _out_scale(self) -> float:
    return (2 * self.shape.layers) ** -0.5 if self.shape.norm_first else 1.0


def unrolled(block: BlockFunction, stacked: Params, x_BxTxD: jax.Array) -> tuple[jax.Array, Auxiliary]:
  """Runs one layer after another, each with its slice of the stacked parameters."""
  total: Auxiliary = {}
  for layer in unstacked(stacked):
    x_BxTxD, auxiliary = block(layer, x_BxTxD)
    total = jax.tree.map(jnp.add, total, auxiliary) if total else auxiliary
  return x_BxTxD, total


def unstacked(stacked: Params) -> list[Params]:
  """Returns the parameters of each layer."""
  leaves, structure = jax.tree.flatten(stacked)
  split = [jax.lax.split(leaf, (1,) * leaf.shape[0]) for leaf in leaves]  # the gradient of a split is one concatenation
  return [jax.tree.unflatten(structure, [leaf[0] for leaf in layer]) for layer in zip(*split, strict=True)]


@dataclasses.dataclass(frozen=True)
class Stack:
  """A stack of blocks, with the functions that compute it."""

  shape: BlockShape
  dtype: DTypeLike
  attend: Attend
  run_blocks: RunBlocks


def stack(
  module: nn.Module, name: str, blocks: Stack, x_BxTxD: jax.Array, memory_BxSxD: jax.Array | None = None
) -> tuple[jax.Array, Auxiliary]:
  """Runs all blocks of a model. Their parameters are `name` of `module`, stacked over layers.

  Auxiliary numbers are summed over layers.
  """
  shape, run_blocks = blocks.shape, blocks.run_blocks
  block = Block(shape, blocks.dtype, blocks.attend, in_training(module), parent=None)
  params: Params = module.param(name, lambda key: stacked_init(key, shape))
  if module.is_initializing():  # the outputs are unused here, and many layers take long to trace
    return x_BxTxD, {}
  if shape.dropout and in_training(module):
    keys = jax.random.key_data(jax.random.split(module.make_rng("dropout"), shape.layers))  # one key per layer

    def with_key(layer: Params, x: jax.Array) -> tuple[jax.Array, Auxiliary]:
      rngs = {"dropout": jax.random.wrap_key_data(layer[1])}
      return cast(Results, block.apply({"params": layer[0]}, x, memory_BxSxD, rngs=rngs))[:2]

    return run_blocks(with_key, (params, keys), x_BxTxD)

  def run(layer: Params, x: jax.Array) -> tuple[jax.Array, Auxiliary]:
    return cast(Results, block.apply({"params": layer}, x, memory_BxSxD))[:2]

  return run_blocks(run, params, x_BxTxD)


def stacked_init(key: jax.Array, shape: BlockShape) -> Params:
  """Returns initial parameters of all blocks, each from its own key, with a leading axis `layers`."""
  block, x_BxTxD = Block(shape, jnp.float32, lambda q, k, v: q, parent=None), jnp.zeros((1, 1, shape.width))
  memory = x_BxTxD if shape.cross else None
  boxed = jax.vmap(lambda key: block.init(key, x_BxTxD, memory)["params"])(jax.random.split(key, shape.layers))
  return nn.meta.add_axis(boxed, 0, {nn.PARTITION_NAME: "layers"})
