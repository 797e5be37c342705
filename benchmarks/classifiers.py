"""Compares softmax regression and an MLP with scikit-learn's, on the same five folds of its digits and breast cancer.

python benchmarks/classifiers.py [--json]    (needs pip install 'bigmodel[metrics]')
"""

import argparse
import json
import tempfile
from typing import Any

FOLDS = 5
STEPS = 3000


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", action="store_true")
  arguments = parser.parse_args()

  from bigmodel import hardware

  hardware.setup()
  rows = [
    {"data": name, "model": family, **compare(name, family)}
    for name in ("digits", "breast_cancer")
    for family in ("linear", "mlp")
  ]
  if arguments.json:
    print(json.dumps(rows))
    return
  for row in rows:
    print(
      f"{row['data']:14s} {row['model']:7s} accuracy {row['ours']:.4f}, scikit-learn {row['theirs']:.4f},"
      f" difference {row['difference']:+.4f} +- {row['stderr']:.4f} (standard error over folds)"
    )


def compare(name: str, family: str) -> dict[str, Any]:
  import numpy as np

  pairs = np.array([fold(name, family, i) for i in range(FOLDS)])
  difference = pairs[:, 0] - pairs[:, 1]
  return {
    "ours": float(pairs[:, 0].mean()),
    "theirs": float(pairs[:, 1].mean()),
    "difference": float(difference.mean()),
    "stderr": float(difference.std(ddof=1) / FOLDS**0.5),
  }


def fold(name: str, family: str, held_out: int) -> tuple[float, float]:
  """Returns the accuracies of bigmodel and scikit-learn on one fold, from the same normalised features."""
  import numpy as np
  from sklearn.linear_model import LogisticRegression
  from sklearn.neural_network import MLPClassifier

  from bigmodel import study
  from bigmodel.data.examples import Examples
  from bigmodel.train.display import Display
  from bigmodel.train.loop import train_runs
  from bigmodel.train.stop import StopRequest

  config = study.default_config(family)
  if family == "mlp":
    config.model.hidden = (100,)
  config.data.update(name=f"sklearn/{name}", folds=FOLDS, fold=held_out)
  config.optim.update(lr=3e-3, weight_decay=0.1 if family == "linear" else 0.3, final=0.0)
  config.train.update(batch_size=64, steps=STEPS, log_every=STEPS)
  with tempfile.TemporaryDirectory() as folder:
    run, data = study.single_run(config, folder)
    with Display(0, True) as display:
      (record,) = train_runs([run], data, display, StopRequest())
  assert isinstance(data, Examples)
  rows = {split: data.rows(split, np.arange(data.count(split))) for split in ("train", "validation")}
  theirs = LogisticRegression(max_iter=5000) if family == "linear" else MLPClassifier((100,), max_iter=500)
  theirs.fit(rows["train"]["inputs"], rows["train"]["targets"])
  return record.metrics["accuracy"], theirs.score(rows["validation"]["inputs"], rows["validation"]["targets"])


if __name__ == "__main__":
  main()
