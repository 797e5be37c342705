"""Does pre-training a deep belief net pay off when labels are few?

Claim (Hinton, Osindero and Teh 2006; Erhan et al. 2010): a sigmoid network whose layers were pre-trained one by one on
unlabelled data generalises better than the same network trained from random weights, and more so the fewer labels
there are.

Method: a network 784-500-500-2000-10 on Fashion-MNIST with 1,000, 10,000 and 60,000 labels and five seeds. Each seed is
pre-trained once on all training images. The learning rate of each arm is chosen for each number of labels on a held-out
sixth of the training images, with a separate seed. The accuracies are those on the test images.

Result (mean accuracies of five seeds, and 95% intervals of their paired differences): the claim holds, by less than its
reputation, and the difference does not grow when labels are fewer.

    labels   pre-trained   plain    difference          learning rates
     1,000   0.8131        0.8031   +0.0100 +- 0.0025   .01, .01
    10,000   0.8702        0.8640   +0.0062 +- 0.0010   .003, .01
    60,000   0.8929        0.8839   +0.0090 +- 0.0016   .003, .01

    python experiments/deep_belief_net.py [--workdir runs/deep_belief_net] [--json]

Rerunning the command resumes an interrupted experiment.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LABELS = {1000: 40, 10_000: 12, 60_000: 5}  # epochs of training with labels
PRETRAINING = 3  # epochs a layer
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = range(5)
TUNING_SEED = 5
NAME = "deep_belief_net"
ARMS = ("pre-trained", "plain")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", default="runs/deep_belief_net")
  parser.add_argument("--json", action="store_true")
  arguments = parser.parse_args()

  from bigmodel import hardware

  hardware.setup()
  rows = compare(Path(arguments.workdir), arguments.json)
  few = rows[0]
  verdict = "holds" if few["difference"] - few["half_width"] > 0 else "not shown"
  if arguments.json:
    print(json.dumps({"rows": rows, "verdict": verdict}))
    return
  print("labels   pre-trained   plain    difference, 95% interval of 5 paired seeds   learning rates")
  for row in rows:
    print(
      f"{row['labels']:6,d}   {row['pre-trained']:.4f}        {row['plain']:.4f}   {row['difference']:+.4f}"
      f" +- {row['half_width']:.4f}{'':28s}{row['rates']}"
    )
  print(f"claim: pre-training is ahead at {few['labels']:,} labels: {verdict}")


def compare(workdir: Path, quiet: bool) -> list[dict[str, Any]]:
  """Accuracies on the test images for each number of labels, means over seeds, and their paired difference."""
  import numpy as np
  from scipy import stats

  pretrained = {
    split: pretrain(workdir / f"pretraining-{split}", split, seeds, quiet)
    for split, seeds in (("own", SEEDS), ("stratified", [TUNING_SEED]))
  }
  rows = []
  for labels, epochs in LABELS.items():
    accuracy, rates = {}, {}
    for arm in ARMS:
      start = lambda split, seed, arm=arm: {"train.init_from": pretrained[split][seed] if arm == ARMS[0] else ""}
      held_in = min(labels, 50_000)
      tuning = [
        {"optim.lr": lr, "seed": TUNING_SEED, "data.seed": TUNING_SEED, **start("stratified", TUNING_SEED)}
        for lr in RATES
      ]
      folder = workdir / f"{arm}-{labels}"
      tuned = train(folder / "tuning", "stratified", held_in, epochs, tuning, quiet)
      rates[arm] = RATES[int(np.argmax(tuned))]
      final = [{"optim.lr": rates[arm], "seed": s, "data.seed": s, **start("own", s)} for s in SEEDS]
      accuracy[arm] = np.array(train(folder / f"final-{rates[arm]:g}", "own", labels, epochs, final, quiet))
    difference = accuracy[ARMS[0]] - accuracy[ARMS[1]]
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    rows.append({
      "labels": labels,
      **{arm: float(accuracy[arm].mean()) for arm in ARMS},
      "difference": float(difference.mean()),
      "half_width": float(half),
      "rates": rates,
    })  # fmt: skip
  return rows


def base(split: str, task: str) -> Any:
  from bigmodel.study import default_config

  config = default_config("dbn", task)
  config.data.update(normalise="unit", split=split, folds=6)
  config.optim.update(lr=1e-3, weight_decay=0.0, final=0.0)
  config.train.update(batch_size=100, log_every=100, checkpoint_every=1 << 30)
  return config


def pretrain(workdir: Path, split: str, seeds: Any, quiet: bool) -> dict[int, str]:
  """The folders of runs that pre-train all layers, one after another, by seed."""
  from bigmodel import study

  examples = 60_000 if split == "own" else 50_000
  config = base(split, "contrastive_divergence")
  layer = f"task.layer={{}} train.tokens={PRETRAINING * examples}"
  config.train.stages = tuple(layer.format(i) for i in range(2))
  config.task.layer = 2
  config.train.tokens = PRETRAINING * examples
  runs = [{"seed": seed, "data.seed": seed} for seed in seeds]
  ended = study.run_listed(config, NAME, runs, workdir, quiet)
  return {seed: str(workdir / "runs" / one.run_id) for seed, one in zip(seeds, ended, strict=True)}


def train(workdir: Path, split: str, labels: int, epochs: int, runs: list[Any], quiet: bool) -> list[float]:
  """Accuracies of runs with labels, in their order."""
  from bigmodel import study

  config = base(split, "classification")
  config.data.examples = labels
  config.train.tokens = epochs * labels
  return [one.metrics["accuracy"] for one in study.run_listed(config, NAME, runs, workdir, quiet)]


if __name__ == "__main__":
  main()
