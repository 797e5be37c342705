"""Compares the training step with those of a plain Linen GPT and a plain PyTorch GPT of the same shapes.

    make bench    (or: python benchmarks/train_step.py [--json] [--widths 64 128 256])

All three train the same decoder (RMSNorm, rotary positions, tied embeddings, GELU,
4 layers, heads of 32, context 128, 16 rows, AdamW, clipping, float32) on the same
cores. Each is measured several times, alternately and in separate processes; the
fastest round of each counts. The matmul peak is measured in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

VOCAB, CONTEXT, ROWS, LAYERS, HEAD = 257, 128, 16, 4, 32
ROUNDS, SECONDS = 3, 4.0


def best_step(step) -> float:
  """Returns the seconds per step of the fastest of several windows, after a warm-up."""
  step()
  step()
  best, began = float("inf"), time.perf_counter()
  while time.perf_counter() - began < SECONDS:
    start = time.perf_counter()
    for _ in range(5):
      step()
    best = min(best, (time.perf_counter() - start) / 5)
  return best


def bigmodel_step(width: int) -> float:
  from bigmodel import hardware

  hardware.setup()
  import numpy as np

  from bigmodel import models, optim
  from bigmodel.study import default_config
  from bigmodel.train import programs

  config = default_config()
  config.model.update(width=width, layers=LAYERS, head_size=HEAD, activation="gelu")
  config.train.update(batch_size=ROWS, steps=1000)
  config.data.context = CONTEXT
  models.resolve(config.model, {"vocab": VOCAB})
  program = programs.program(config)
  state = program.place([program.init(0)])
  rows = np.random.default_rng(0).integers(0, VOCAB, (ROWS, CONTEXT + 1)).astype(np.int32)
  h = program.put_hyperparameters([optim.hyperparameters(config, 1000)])
  last = None

  def step() -> None:
    nonlocal state, last
    state, metrics = program.step(state, program.put_rows([rows]), h)
    if last is not None:
      float(last["loss"])  # the training loop also waits for the previous step
    last = metrics

  return best_step(step)


def linen_step(width: int) -> float:
  """Measures what a Flax user would write: nn modules, optax.adamw, one jax.jit, one device."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  angle = np.arange(CONTEXT)[:, None] * 10_000 ** -(np.arange(HEAD // 2) / (HEAD // 2))
  cos, sin = np.cos(angle)[:, None].astype("f4"), np.sin(angle)[:, None].astype("f4")

  def rotary(x):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.RMSNorm()(x)
      q, k, v = (nn.DenseGeneral((width // HEAD, HEAD), use_bias=False)(y) for _ in range(3))
      q, k = rotary(q), rotary(k)
      mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
      y = nn.dot_product_attention(q, k, v, mask=mask)
      x = x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False)(y)
      y = nn.Dense(4 * width, use_bias=False)(nn.RMSNorm()(x))
      return x + nn.Dense(width, use_bias=False)(nn.gelu(y))

  class Gpt(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(VOCAB, width)
      x = embed(tokens)
      for _ in range(LAYERS):
        x = Block()(x)
      return embed.attend(nn.RMSNorm()(x))

  model = Gpt()
  rows = np.random.default_rng(0).integers(0, VOCAB, (ROWS, CONTEXT + 1)).astype(np.int32)
  params = model.init(jax.random.key(0), rows[:, :-1])
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = (params, optimizer.init(params))

  @jax.jit
  def train_step(state, rows):
    params, moments = state

    def loss_of(params):
      logits: Any = model.apply(params, rows[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments), loss

  last = None

  def step() -> None:
    nonlocal state, last
    state, loss = train_step(state, rows)
    if last is not None:
      float(last)
    last = loss

  return best_step(step)


def torch_trainer(width: int, threads: int, lr: float = 1e-3, seed: int = 0):
  """Returns a PyTorch step, a function of rows: eager modules, scaled_dot_product_attention, AdamW."""
  import torch  # pyright: ignore[reportMissingImports]
  import torch.nn.functional as F  # noqa: N812  # pyright: ignore[reportMissingImports]
  from torch import nn  # pyright: ignore[reportMissingImports]

  torch.manual_seed(seed)
  torch.set_num_threads(threads)
  angle = torch.arange(CONTEXT)[:, None] * 10_000 ** -(torch.arange(HEAD // 2) / (HEAD // 2))
  cos, sin = angle.cos(), angle.sin()

  def rotary(x):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
      self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
      self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
      heads = self.qkv(self.norm1(x)).split(width, -1)
      q, k, v = (h.view(-1, CONTEXT, width // HEAD, HEAD).transpose(1, 2) for h in heads)
      y = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(-1, CONTEXT, width))
      return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

  class Gpt(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed, self.norm = nn.Embedding(VOCAB, width), nn.RMSNorm(width)
      self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))

    def forward(self, tokens):
      return self.norm(self.blocks(self.embed(tokens))) @ self.embed.weight.T

  model = Gpt()
  optimizer = torch.optim.AdamW(model.parameters(), lr)

  def step(given) -> None:
    rows = torch.from_numpy(given)
    loss = F.cross_entropy(model(rows[:, :-1]).view(-1, VOCAB), rows[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    float(loss.detach())

  return step


def torch_step(width: int) -> float:
  import numpy as np

  step = torch_trainer(width, len(os.sched_getaffinity(0)))
  rows = np.random.default_rng(0).integers(0, VOCAB, (ROWS, CONTEXT + 1))
  return best_step(lambda: step(rows))


def peak(_: int) -> float:
  import jax

  from bigmodel import hardware

  hardware.setup()
  return hardware.measured_flops(tuple(jax.devices()), "float32", 2048, 10)


KINDS = {"bigmodel": bigmodel_step, "linen": linen_step, "torch": torch_step, "peak": peak}


def measure(kind: str, width: int) -> float:
  """Runs one measurement in a separate process."""
  done = subprocess.run(
    [sys.executable, __file__, "--one", kind, str(width)], capture_output=True, text=True, check=False
  )
  if done.returncode:
    sys.exit(f"{kind} of width {width} failed:\n{done.stderr}")
  return float(done.stdout.split()[-1])


def flops_per_token(width: int) -> float:
  from bigmodel.models.decoder import Shape

  heads = width // HEAD
  return Shape(VOCAB, width, LAYERS, heads, heads, HEAD, 4 * width, "gelu", False, True).counts(CONTEXT).exact_per_token


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.one:
    kind, width = arguments.one
    print(KINDS[kind](int(width)))
    return
  top = max(measure("peak", 0) for _ in range(ROUNDS))
  rows = []
  for width in arguments.widths:
    seconds = {kind: float("inf") for kind in ("bigmodel", "linen", "torch")}
    for _ in range(ROUNDS):
      for kind in seconds:
        seconds[kind] = min(seconds[kind], measure(kind, width))
    row = {"width": width}
    for kind, value in seconds.items():
      row[f"{kind}_tokens_per_second"] = ROWS * CONTEXT / value
      row[f"{kind}_peak_fraction"] = ROWS * CONTEXT * flops_per_token(width) / value / top
    row["over_linen"] = seconds["linen"] / seconds["bigmodel"]
    row["over_torch"] = seconds["torch"] / seconds["bigmodel"]
    rows.append(row)
  if arguments.json:
    print(json.dumps({"peak_flops": top, "rows": rows}))
    return
  print(f"matmul peak {top / 1e9:.0f} GFLOP/s on {len(os.sched_getaffinity(0))} cores; tokens/s (share of the peak)")
  print(f"{'width':>5} {'bigmodel':>18} {'plain Linen':>18} {'PyTorch':>18} {'over Linen':>11} {'over PyTorch':>13}")
  for row in rows:
    cells = [
      f"{row[f'{kind}_tokens_per_second']:>11,.0f} ({row[f'{kind}_peak_fraction']:.0%})"
      for kind in ("bigmodel", "linen", "torch")
    ]
    print(
      f"{row['width']:>5} "
      + " ".join(f"{c:>18}" for c in cells)
      + f" {row['over_linen']:>11.2f} {row['over_torch']:>13.2f}"
    )


if __name__ == "__main__":
  main()
