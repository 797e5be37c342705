"""Attention on a mesh: equivalent kernels, chosen by platform and mesh.

- `plain`: scores of all pairs; fastest for short rows on a CPU.
- `blockwise`: keys and values block by block, without storing scores (Rabe and Staats 2021; Dao et al. 2022).
- `ring`: blockwise along the mesh axis `sequence`, keys and values passed from device to device (Liu et al. 2023).
- `gather`: queries stay sharded over `sequence`, keys and values are gathered.
- `cudnn`: the fused kernel of NVIDIA's library. `splash`: JAX's Pallas kernel for TPUs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bigmodel import models
from bigmodel.config import Config, require
from bigmodel.models.layers.attention import Attend, attend, repeat_heads
from bigmodel.parallel.logical_axes import BATCH

BLOCK = 512
PLAIN_CONTEXT = 2048  # longest row for which plain attention is faster on a CPU
HIDDEN = -1e30


def choose(config: Config, mesh: Mesh, platform: str, packed: bool = False) -> Attend:
  """Returns the attention that `config.parallel` names, or the fastest on this platform and mesh."""
  if "attend" not in models.family(config.model.family).SUPPLIED or config.model.positions == "relative":
    return attend
  kernel = config.parallel.attention
  spread = mesh.shape["sequence"] > 1
  if packed and (kernel == "splash" or (kernel == "auto" and platform == "tpu")):
    platform, kernel = "cpu", "auto"  # splash has its own map over devices, which lacks the axis of members
  if kernel == "auto":
    kernel = best(config, platform)
  if spread and config.parallel.sequence_attention == "ring" and kernel != "splash":
    return ring(mesh)
  if kernel == "splash":
    return splash(mesh, interpret=platform != "tpu")
  if spread:
    return gathered(mesh)
  if kernel == "cudnn":
    return functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
  return blockwise if kernel == "blockwise" else attend


def best(config: Config, platform: str) -> str:
  """Returns the name of the kernel that is fastest for the config's rows and dtypes."""
  context, half = config.data.context, config.train.compute_dtype == "bfloat16"
  head_size = config.model.head_size
  if platform == "tpu" and context % (128 * max(1, config.parallel.sequence)) == 0 and head_size % 128 == 0:
    return "splash"
  if platform in ("gpu", "cuda") and half and head_size % 8 == 0 and head_size <= 128:
    return "cudnn"
  return "plain" if context <= PLAIN_CONTEXT else "blockwise"


def blockwise(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array) -> jax.Array:
  """Computes causal attention over blocks of keys and values."""
  return chunk(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, jnp.int32(0))[0]


@jax.custom_vjp
def chunk(q: jax.Array, k: jax.Array, v: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Causal attention of queries to a chunk of keys and values: `(out_BxTxHxK, log-sum-exp_BxHxT float32)`.

  Query i sees key j if j <= i + offset. A query that sees no key has a log-sum-exp near `HIDDEN`.
  """
  return _chunk_forward(q, k, v, offset)[0]


def _blocks(k: jax.Array, v: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns keys and values as [blocks, B, block, H, K], and the first position of each block."""
  B, S, _, K = k.shape
  size = next(n for n in range(min(BLOCK, S), 0, -1) if S % n == 0)

  def cut(x: jax.Array) -> jax.Array:
    return repeat_heads(x, heads).reshape(B, S // size, size, heads, K).swapaxes(0, 1)

  return cut(k), cut(v), jnp.arange(S // size) * size


def _scores(q: jax.Array, k: jax.Array, first: jax.Array, offset: jax.Array) -> jax.Array:
  """Returns masked scores_BxHxTxS in float32."""
  scores = jnp.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
  seen = first + jnp.arange(k.shape[1])[None, :] <= jnp.arange(q.shape[1])[:, None] + offset
  return jnp.where(seen, scores, HIDDEN)


def _chunk_forward(q: jax.Array, k: jax.Array, v: jax.Array, offset: jax.Array):
  B, T, H, K = q.shape

  def add(carry: tuple, block: tuple) -> tuple[tuple, None]:
    top_BxHxT, total_BxHxT, out_BxHxTxK = carry
    scores = _scores(q, block[0], block[2], offset)
    new_top = jnp.maximum(top_BxHxT, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - new_top[..., None])
    scale = jnp.exp(top_BxHxT - new_top)
    added = jnp.einsum("bhts,bshk->bhtk", weights.astype(v.dtype), block[1], preferred_element_type=jnp.float32)
    return (new_top, total_BxHxT * scale + weights.sum(-1), out_BxHxTxK * scale[..., None] + added), None

  start = (jnp.full((B, H, T), HIDDEN), jnp.zeros((B, H, T)), jnp.zeros((B, H, T, K)))
  (top, total, out), _ = jax.lax.scan(add, start, _blocks(k, v, H))
  out_BxTxHxK = (out / total[..., None]).swapaxes(1, 2).astype(q.dtype)
  lse = top + jnp.log(total)
  return (out_BxTxHxK, lse), (q, k, v, offset, out_BxTxHxK, lse)


def _chunk_backward(kept: tuple, cotangents: tuple):
  q, k, v, offset, out, lse = kept
  d_out, d_lse = cotangents
  H, G = q.shape[2], k.shape[2]
  scale = q.shape[-1] ** -0.5
  # d score = weight * (d weight - sum(d out * out) + d lse)
  shift_BxHxT = d_lse - jnp.einsum("bthk,bthk->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))

  def add(dq: jax.Array, block: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    weights = jnp.exp(_scores(q, block[0], block[2], offset) - lse[..., None])
    dv = jnp.einsum("bhts,bthk->bshk", weights.astype(v.dtype), d_out)
    d_weights = jnp.einsum("bthk,bshk->bhts", d_out, block[1], preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights + shift_BxHxT[..., None]) * scale).astype(q.dtype)
    dq = dq + jnp.einsum("bhts,bshk->bthk", d_scores, block[0], preferred_element_type=jnp.float32)
    return dq, (jnp.einsum("bhts,bthk->bshk", d_scores, q), dv)

  dq, (dk, dv) = jax.lax.scan(add, jnp.zeros(q.shape), _blocks(k, v, H))
  B, S, _, K = k.shape

  def gather(x: jax.Array) -> jax.Array:
    return x.swapaxes(0, 1).reshape(B, S, G, H // G, K).sum(3)

  return dq.astype(q.dtype), gather(dk).astype(k.dtype), gather(dv).astype(v.dtype), np.zeros((), jax.dtypes.float0)


chunk.defvjp(_chunk_forward, _chunk_backward)

_SPEC = PartitionSpec(BATCH, "sequence", "tensor", None)


def ring(mesh: Mesh) -> Attend:
  """Returns attention for rows sharded over `sequence`: keys and values pass from device to device."""
  ways = mesh.shape["sequence"]

  onward = [(i, (i + 1) % ways) for i in range(ways)]

  def pass_on(x: jax.Array) -> jax.Array:
    return jax.lax.ppermute(x, "sequence", onward)

  def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return around(q, k, v, ways, jax.lax.axis_index("sequence"), pass_on)

  return jax.shard_map(local, mesh=mesh, in_specs=(_SPEC,) * 3, out_specs=_SPEC, check_vma=False)


def around(
  q: jax.Array, k: jax.Array, v: jax.Array, ways: int, mine: jax.Array, pass_on: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Computes one device's part of a ring: its queries attend to every chunk of keys and values in turn."""
  T = q.shape[1]
  out_sum, weight_sum, top = jnp.float32(0), jnp.float32(0), None
  for turn in range(ways):
    owner = (mine - turn) % ways
    out, lse = chunk(q, k, v, (mine - owner) * T)
    lse_BxTxHx1 = lse.swapaxes(1, 2)[..., None]
    if top is None:
      top = lse_BxTxHx1  # of this device's chunk, in which every query sees at least one key
    # Sums are scaled by the largest log-sum-exp so far.
    new_top = jnp.maximum(top, lse_BxTxHx1)
    scale, weight = jnp.exp(top - new_top), jnp.exp(lse_BxTxHx1 - new_top)
    out_sum, weight_sum, top = out_sum * scale + out * weight, weight_sum * scale + weight, new_top
    if turn < ways - 1:
      k, v = pass_on(k), pass_on(v)
  return (out_sum / weight_sum).astype(q.dtype)


def gathered(mesh: Mesh) -> Attend:
  """Returns attention for rows sharded over `sequence`: keys and values are gathered, queries stay sharded."""
  ways = mesh.shape["sequence"]

  def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    k, v = (jax.lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (k, v))
    return chunk(q, k, v, jax.lax.axis_index("sequence") * q.shape[1])[0]

  assert ways > 1
  return jax.shard_map(local, mesh=mesh, in_specs=(_SPEC,) * 3, out_specs=_SPEC, check_vma=False)


def splash(mesh: Mesh, interpret: bool = False) -> Attend:
  """Returns JAX's Pallas attention for TPUs; keys and values are gathered along `sequence`."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  ways = mesh.shape["sequence"]

  def run(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array) -> jax.Array:
    T, H, K = q_BxTxHxK.shape[1:]
    heads = H // mesh.shape["tensor"]
    size = next((n for n in (1024, 512, 256, 128) if (T // ways) % n == 0), 0)
    require(size > 0, f"config.parallel.attention: splash needs a multiple of {128 * ways} tokens a row, not {T}")
    sizes = kernels.BlockSizes(
      block_q=size,
      block_kv=size,
      block_kv_compute=size,
      block_q_dkv=size,
      block_kv_dkv=size,
      block_kv_dkv_compute=size,
      use_fused_bwd_kernel=True,
    )

    def local(kernel, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
      if ways > 1:
        k, v = (jax.lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (k, v))
      q, k, v = (x.swapaxes(1, 2) for x in (q * K**-0.5, k, v))
      return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)

    mask = masks.MultiHeadMask([masks.CausalMask((T, T)) for _ in range(heads)])
    kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=ways, interpret=interpret)
    kernel_spec = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, PartitionSpec(None, "sequence")))
    mapped = jax.shard_map(
      local, mesh=mesh, in_specs=(kernel_spec, _SPEC, _SPEC, _SPEC), out_specs=_SPEC, check_vma=False
    )
    return mapped(kernel, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)

  return run
