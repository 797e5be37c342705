"""Decoding with a cache of keys and values: greedy, sampling or beam search, in one compiled loop over new tokens."""

import functools
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp

from bigmodel.models.decoder import Decoder
from bigmodel.models.layers.attention import Cache
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.layers.block import unstacked
from bigmodel.types import Params

Carry: TypeAlias = tuple[jax.Array, list[Cache]]  # logits_BxV of the next token, caches
# logits_WxV of the next token, caches, scores_W, whether each has ended, tokens_WxN so far
Beams: TypeAlias = tuple[jax.Array, list[Cache], jax.Array, jax.Array, jax.Array]


def empty_caches(model: Decoder, rows: int, length: int) -> list[Cache]:
  """Returns empty caches of every layer for the keys and values of `length` tokens."""
  one = jnp.zeros((rows * model.shape.kv_heads, length, model.shape.head_size), model.dtype)
  return [(one, one)] * model.shape.layers


def by_layer(params: Params) -> Params:
  """Returns the parameters with stacked blocks split into layers, because a loop would copy slices for every token."""
  return {**params, "blocks": unstacked(params["blocks"])}


def _applied(
  model: Decoder, params: Params, tokens_BxT: jax.Array, caches: list[Cache], start: jax.Array
) -> tuple[jax.Array, list[Cache]]:
  with exact_products(model.dtype):
    return cast(tuple[jax.Array, list[Cache]], model.apply({"params": params}, tokens_BxT, caches, start))


@functools.partial(jax.jit, static_argnames=("model", "new", "top_k"))
def sample(
  model: Decoder,
  params: Params,
  prompt_BxP: jax.Array,
  new: int,
  key: jax.Array,
  temperature: jax.Array,
  top_p: jax.Array,
  top_k: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """Returns `(tokens_BxN, their log-probabilities under the model)`; a temperature of 0 takes the likeliest token.

  `top_k` keeps that many tokens (0: all); `top_p` the fewest that have this probability
  together (Holtzman et al. 2020).
  """
  P, params = prompt_BxP.shape[1], by_layer(params)
  caches = empty_caches(model, len(prompt_BxP), P + new)
  logits_BxPxV, caches = _applied(model, params, prompt_BxP, caches, jnp.int32(0))

  def drawn(logits_BxV: jax.Array, key: jax.Array) -> jax.Array:
    scaled_BxV = logits_BxV / jnp.maximum(temperature, 1e-6)
    restrict = functools.partial(_restrict, top_k=top_k, top_p=top_p)
    scaled_BxV = jax.lax.cond(bool(top_k) | (top_p < 1), restrict, lambda x_BxV: x_BxV, scaled_BxV)
    return jax.random.categorical(key, scaled_BxV)

  def greedy(logits_BxV: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return jnp.argmax(logits_BxV, axis=-1)

  def pick(logits_BxV: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Sorting and drawing cost as much as a small model, so they run only if needed.
    token_B = jax.lax.cond(temperature > 0, drawn, greedy, logits_BxV, key).astype(jnp.int32)
    return token_B, jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), token_B[:, None], axis=-1)[:, 0]

  def step(carry: Carry, given: tuple[jax.Array, jax.Array]) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    logits_BxV, caches = carry
    at, key = given
    token_B, chance_B = pick(logits_BxV, key)
    logits_Bx1xV, caches = _applied(model, params, token_B[:, None], caches, at)
    return (logits_Bx1xV[:, 0], caches), (token_B, chance_B)

  keys = jax.random.split(key, new)
  carry, (tokens_NxB, chances_NxB) = jax.lax.scan(
    step, (logits_BxPxV[:, -1], caches), (P + jnp.arange(new - 1), keys[: new - 1])
  )
  token_B, chance_B = pick(carry[0], keys[new - 1])
  tokens_NxB, chances_NxB = jnp.concatenate([tokens_NxB, token_B[None]]), jnp.concatenate([chances_NxB, chance_B[None]])
  return tokens_NxB.T, chances_NxB.T


def _restrict(logits_BxV: jax.Array, top_k: int, top_p: jax.Array) -> jax.Array:
  """Returns the logits with those outside the `top_k` and the nucleus hidden."""
  V = logits_BxV.shape[-1]
  best_BxV = jnp.sort(logits_BxV, axis=-1)[:, ::-1]
  least = best_BxV[:, min(top_k or V, V) - 1]
  before_BxV = jnp.cumsum(jax.nn.softmax(best_BxV), axis=-1) - jax.nn.softmax(best_BxV)
  inside_BxV = jnp.where(before_BxV < top_p, best_BxV, jnp.inf)
  least = jnp.maximum(least, jnp.min(inside_BxV, axis=-1))
  return jnp.where(logits_BxV >= least[:, None], logits_BxV, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "new", "beams"))
def beam_search(
  model: Decoder, params: Params, prompt_1xP: jax.Array, new: int, beams: int, stop: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `(tokens_WxN, log-probabilities_W)`, likeliest first; after a stop a sequence repeats it.

  `stop` is one token, int32[], or several, int32[S], of which the first is repeated.
  """
  stop_S = jnp.atleast_1d(stop)
  W, P, params = beams, prompt_1xP.shape[1], by_layer(params)
  caches = empty_caches(model, W, P + new)
  logits, caches = _applied(model, params, jnp.repeat(prompt_1xP, W, axis=0), caches, jnp.int32(0))
  V = model.shape.vocab
  only_stop_V = jnp.where(jnp.arange(V) == stop_S[0], 0.0, -jnp.inf)
  # All beams are equal at first, so only one of them counts.
  score_W = jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf)

  def extend(beams: Beams, n: jax.Array | int) -> Beams:
    """Returns the best continuations by token number n, with the chosen tokens in place of the logits."""
    logits_WxV, caches, score_W, done_W, tokens_WxN = beams
    chance_WxV = jnp.where(done_W[:, None], only_stop_V, jax.nn.log_softmax(logits_WxV))
    score_W, place_W = jax.lax.top_k((score_W[:, None] + chance_WxV).reshape(-1), W)
    beam_W, token_W = place_W // V, (place_W % V).astype(jnp.int32)
    tokens_WxN = tokens_WxN[beam_W].at[:, n].set(token_W)
    done_W = done_W[beam_W] | jnp.isin(token_W, stop_S)
    caches = jax.tree.map(lambda x: x.reshape(W, -1, *x.shape[1:])[beam_W].reshape(x.shape), caches)
    return token_W, caches, score_W, done_W, tokens_WxN

  def step(beams: Beams, n: jax.Array) -> tuple[Beams, None]:
    token_W, caches, score_W, done_W, tokens_WxN = extend(beams, n)
    logits_Wx1xV, caches = _applied(model, params, token_W[:, None], caches, P + n)
    return (logits_Wx1xV[:, 0], caches, score_W, done_W, tokens_WxN), None

  first = (logits[:, -1], caches, score_W, jnp.zeros(W, bool), jnp.zeros((W, new), jnp.int32))
  last, _ = jax.lax.scan(step, first, jnp.arange(new - 1))
  _, _, score_W, _, tokens_WxN = extend(last, new - 1)
  return tokens_WxN, score_W
