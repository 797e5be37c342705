"""Compares greedy decoding with and without a cache of keys and values, in one run.

    python benchmarks/decoding.py [--json] [--tokens 512]

Reports whether both give the same tokens, the ratio of their times, and the time needed to
read weights and cache at this machine's memory bandwidth as a share of the cached decoder's time.
"""

import argparse
import json
import time
from typing import Any


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--tokens", type=int, default=512)
  arguments = parser.parse_args()

  import jax
  import jax.numpy as jnp

  from bigmodel import hardware

  hardware.setup()
  stream = jnp.ones(1 << 26, jnp.float32)  # 256 MB: larger than a CPU's caches
  total = jax.jit(jnp.sum)
  bandwidth = stream.nbytes / timed(lambda: total(stream))
  rows = [measure(width, layers, arguments.tokens, bandwidth) for width, layers in ((256, 4), (512, 8))]
  if arguments.json:
    print(json.dumps({"bandwidth": bandwidth, "rows": rows}))
    return
  print(f"memory is read at {bandwidth / 1e9:.1f} GB/s; {arguments.tokens} tokens, one row")
  for row in rows:
    print(
      f"width {row['width']}, {row['layers']} layers: same tokens {row['same_tokens']}, {row['ratio']:.0f}x as fast as"
      f" without cache, {row['tokens_per_second']:.0f} tokens/s, {row['of_bandwidth']:.0%} of the bandwidth"
    )


def measure(width: int, layers: int, new: int, bandwidth: float) -> dict[str, Any]:
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import linen as nn

  from bigmodel.models.decoder import Decoder, Shape
  from bigmodel.tasks.generation import sample

  shape = Shape(4096, width, layers, width // 64, width // 64, 64, 4 * width, "gelu")
  model, prompt, key = Decoder(shape), jnp.zeros((1, 1), jnp.int32), jax.random.key(0)
  params = nn.meta.unbox(jax.jit(model.init)(key, jnp.zeros((1, 4), jnp.int32))["params"])
  cached = lambda: sample(model, params, prompt, new, key, jnp.float32(0), jnp.float32(1))[0]

  @jax.jit
  def extended(tokens_1xT: jax.Array, at: jax.Array) -> jax.Array:
    """Returns the tokens with the next one written after position `at`; causal attention hides later positions."""
    return tokens_1xT.at[0, at + 1].set(jnp.argmax(model.apply({"params": params}, tokens_1xT)[0][0, at]))

  tokens = jnp.zeros((1, new + 1), jnp.int32)
  jax.block_until_ready(extended(tokens, 0))
  began = time.perf_counter()
  for at in range(new):
    tokens = extended(tokens, at)
  jax.block_until_ready(tokens)
  slow, fast = time.perf_counter() - began, timed(cached)
  # Each token reads all weights and the whole cache once.
  needed = sum(x.nbytes for x in jax.tree.leaves(params)) + 2 * 4 * layers * width * (new + 1)
  return {
    "width": width,
    "layers": layers,
    "parameters": shape.params()["total"],
    "same_tokens": bool(np.array_equal(cached(), tokens[:, 1:])),
    "ratio": slow / fast,
    "tokens_per_second": new / fast,
    "of_bandwidth": new * needed / bandwidth / fast,
  }


def timed(function: Any, repeats: int = 3) -> float:
  """Returns the seconds of the fastest of several calls, after one that compiles."""
  import jax

  jax.block_until_ready(function())
  best = float("inf")
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(function())
    best = min(best, time.perf_counter() - began)
  return best


if __name__ == "__main__":
  main()
