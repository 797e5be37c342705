"""Compares the cost of each optimizer's update with AdamW's in one run, on the gradients of a decoder of width 256.

    python benchmarks/optimizers.py [--json] [--width 256]

Every tenth step Sophia computes a Hessian-vector product, and Shampoo and SOAP compute eigenvectors: times are means
over ten steps.
"""

import argparse
import json
import time
from typing import Any


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--width", type=int, default=256)
  arguments = parser.parse_args()

  from bigmodel import hardware, optim

  hardware.setup()
  rows = {name: measure(name, arguments.width) for name in optim.NAMES}
  for row in rows.values():
    row["times_adamw"] = row["seconds"] / rows["adamw"]["seconds"]
  if arguments.json:
    print(json.dumps(rows))
    return
  for name, row in rows.items():
    times = f"{row['times_adamw']:6.2f} times AdamW"
    print(f"{name:14s} {1e3 * row['seconds']:8.2f} ms  {times}  {row['state']:.2f} state numbers per parameter")


def measure(name: str, width: int) -> dict[str, Any]:
  import jax
  import jax.numpy as jnp
  from flax import linen as nn

  from bigmodel import models, optim, study
  from bigmodel.study import default_config

  config = default_config()
  config.model.update(width=width, layers=4, head_size=64)
  config.optim.name = name
  config = study.resolve_without_data(config)
  model, how, h = models.build(config), optim.How.of(config), optim.hyperparameters(config, 1000)
  tokens = jax.random.randint(jax.random.key(1), (4, 128), 0, config.model.vocab)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
  loss = lambda p: jnp.mean(jax.nn.logsumexp(model.apply({"params": p}, tokens)[0], axis=-1))
  grads = jax.jit(jax.grad(loss))(params)
  step = jax.jit(lambda p, s, i: optim.update(how, grads, s, p, i, h, loss)[:2])
  state = optim.initial_state(how, params)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  kept = size(state) / size(params)
  params, state = jax.block_until_ready(step(params, state, 0))
  began, steps = time.perf_counter(), 20
  for i in range(1, steps + 1):
    params, state = step(params, state, i)
  jax.block_until_ready(params)
  return {"seconds": (time.perf_counter() - began) / steps, "state": kept}


if __name__ == "__main__":
  main()
