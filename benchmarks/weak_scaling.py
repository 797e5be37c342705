"""Weak scaling of compiled collectives: bytes sent per chip and step, with equal rows per chip on 8 to 256 chips.

    python benchmarks/weak_scaling.py [--json] [--chip v5e]    (needs pip install 'bigmodel[tpu]', no TPU)

The TPU compiler compiles each preset. In theory, each of k devices in a ring sends
(k - 1) / k of what it gathers, scatters or reduces. So from 8 to 256 chips, the bytes per chip
may grow by at most k / (k - 1) for the ring at 8 chips, and not with the number of chips.
"""

import argparse
import json
import sys

SLICES = {"v5e": ("2x4", "4x8", "8x16", "16x16"), "v5p": ("2x2x2", "4x4x2", "4x4x8", "4x8x8")}
ROWS = 2  # rows per chip


def model(preset: str, chips: int):
  from bigmodel.study import default_config

  config = default_config()
  config.model.update(
    vocab=8192, width=2048, layers=4, heads=16, kv_heads=8, head_size=128, feed_forward=4096, tie_embeddings=False
  )
  if preset == "ep":
    config.model.update(experts=8, expert_group=256)
  config.data.context = 1024
  config.train.update(batch_size=ROWS * chips, steps=1, compute_dtype="bfloat16")
  config.eval.batch_size = ROWS * chips
  config.parallel.update(preset=preset, scan=True, remat="full", microbatches=2)
  return config


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--chip", default="v5e", choices=sorted(SLICES))
  parser.add_argument("--presets", default="", help="presets separated by commas; default: all")
  arguments = parser.parse_args()
  from bigmodel import hardware, parallel
  from bigmodel.parallel import topology
  from bigmodel.planner.compiled import compile_step

  hardware.setup()
  rows = []
  for preset in arguments.presets.split(",") if arguments.presets else parallel.PRESETS:
    sent = []
    for shape in SLICES[arguments.chip]:
      where = topology.parse(f"{arguments.chip}:{shape}")
      if where.devices is None:
        sys.exit(where.why_not)
      step = compile_step(model(preset, where.count), where)
      by_kind: dict[str, float] = {}
      for one in step.collectives:
        by_kind[one.kind] = by_kind.get(one.kind, 0.0) + one.bytes
      sent.append({"chips": where.count, "bytes": sum(by_kind.values()), "by_kind": by_kind})
      print(
        f"{preset:11s} {where.count:4d} chips  {sent[-1]['bytes'] / 1e6:10.1f} MB a chip", file=sys.stderr, flush=True
      )
    rows.append({"preset": preset, "sent": sent, "growth": sent[-1]["bytes"] / sent[0]["bytes"]})
  if arguments.json:
    print(json.dumps(rows))
    return
  for row in rows:
    print(f"{row['preset']:11s}", *(f"{one['bytes'] / 1e6:10.1f}" for one in row["sent"]), f"  x{row['growth']:.2f}")


if __name__ == "__main__":
  main()
