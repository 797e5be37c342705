"""Compares data preparation with pandas and with `tokenizers` alone in time and memory, and measures row throughput.

    python benchmarks/data.py [--json] [--rows 1000000] [--bytes 1000000000]    (needs pip install 'bigmodel[tables]')

Each part runs in a separate process, so that its peak memory is measured separately.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COLUMNS = 50
TEN = "0000?.txt"  # ten of the text files
PARTS = ("table", "pandas", "corpus", "bpe", "tokenizers", "text_rows", "image_rows")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--bytes", type=int, default=1_000_000_000)
  parser.add_argument("--part", default="", help=argparse.SUPPRESS)
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.part:
    print(json.dumps(globals()[arguments.part](Path(arguments.folder))))
    return
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    make_table(folder, arguments.rows)
    make_text(folder, arguments.bytes)
    results = {part: run(part, folder) for part in PARTS}
  if arguments.json:
    print(json.dumps(results))
    return
  for part, facts in results.items():
    print(f"{part:11s}", "  ".join(f"{name} {value:,.4g}" for name, value in facts.items()))


def run(part: str, folder: Path) -> dict[str, float]:
  command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
  environment = os.environ | {"BIGMODEL_CACHE": str(folder / "cache")}
  done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def make_table(folder: Path, rows: int) -> None:
  import numpy as np
  import polars as pl

  rng = np.random.default_rng(0)
  with open(folder / "table.csv", "wb") as file:
    for first in range(0, rows, 100_000):
      count = min(100_000, rows - first)
      columns: dict[str, Any] = {f"x{i}": rng.normal(size=count).astype(np.float32) for i in range(COLUMNS - 1)}
      columns["x0"][rng.random(count) < 0.01] = np.nan
      columns["y"] = rng.integers(0, 2, count)
      part = pl.DataFrame(columns, nan_to_null=True)
      part.write_csv(file, include_header=first == 0)


def make_text(folder: Path, size: int) -> None:
  """Writes documents whose word frequencies resemble those of a language."""
  import numpy as np

  rng = np.random.default_rng(0)
  words = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(20_000)])
  (folder / "text").mkdir()
  written = number = 0
  while written < size:
    places = np.array(20_000 * rng.random(150_000) ** 3, np.int64)
    lines = [" ".join(part) for part in np.array_split(words[places], 1_500)]
    text = "\n".join(lines)
    (folder / "text" / f"{number:05d}.txt").write_text(text)
    written, number = written + len(text), number + 1


def spent(began: float) -> dict[str, float]:
  import resource

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"seconds": time.perf_counter() - began, "peak_bytes": peak}


def config_of(folder: Path, kind: str) -> Any:
  from bigmodel.study import default_config

  if kind == "text":
    config = default_config()
    config.data.update(name="text_files", path=str(folder / "text"))
    return config
  config = default_config("mlp")
  config.data.update(name="table", path=str(folder / "table.csv"), target="y")
  return config


def table(folder: Path) -> dict[str, float]:
  from bigmodel.data import pipeline

  config = config_of(folder, "table")
  began = time.perf_counter()
  data: Any = pipeline.prepare(config)
  facts = spent(began)
  return {"rows_per_second": len(data.targets) / facts["seconds"], **facts}


def pandas(folder: Path) -> dict[str, float]:
  """Does the same with pandas: read, split, impute by the training median, normalise."""
  import numpy as np
  import pandas as pd  # pyright: ignore[reportMissingImports]

  began = time.perf_counter()
  frame = pd.read_csv(folder / "table.csv")
  train = np.random.default_rng(0).random(len(frame)) < 0.8
  features = frame.drop(columns="y")
  features = features.fillna(features[train].median())
  inputs = ((features - features[train].mean()) / features[train].std()).to_numpy(np.float32)
  facts = spent(began)
  return {"rows_per_second": len(inputs) / facts["seconds"], **facts}


def corpus(folder: Path) -> dict[str, float]:
  from bigmodel.data import pipeline

  config = config_of(folder, "text")
  began = time.perf_counter()
  data: Any = pipeline.prepare(config)
  facts = spent(began)
  return {"megabytes_per_second": sum(data.bytes.values()) / 1e6 / facts["seconds"], **facts}


def bpe(folder: Path) -> dict[str, float]:
  """Trains a BPE tokenizer on ten files, tokenizes them and stores the tokens."""
  from bigmodel.data import pipeline

  config = config_of(folder, "text")
  config.data.update(path=str(folder / "text" / TEN), tokenizer="bpe", heldout_fraction=0.2)
  began = time.perf_counter()
  data: Any = pipeline.prepare(config)
  facts = spent(began)
  return {"megabytes_per_second": sum(data.bytes.values()) / 1e6 / facts["seconds"], **facts}


def tokenizers(folder: Path) -> dict[str, float]:
  """Does the same training and tokenizing with `tokenizers` alone, document by document, without storing tokens."""
  from tokenizers import Tokenizer

  from bigmodel.data import corpus_files, documents, tokenizer

  files = corpus_files.find(str(folder / "text" / TEN)).files
  began = time.perf_counter()
  texts = [text for file in files for document in documents.documents(file, "") for _, text in document.pieces]
  encoder: Any = Tokenizer.from_str(tokenizer.train_bpe(texts, 4096))
  for text in texts:
    _ = encoder.encode(text).ids
  facts = spent(began)
  return {"megabytes_per_second": sum(map(len, texts)) / 1e6 / facts["seconds"], **facts}


def text_rows(folder: Path) -> dict[str, float]:
  """Measures tokens per second of training rows, with context 128 and batches of 16."""
  from bigmodel.data import pipeline

  config = config_of(folder, "text")
  config.train.steps = 1
  rows = pipeline.train_pipeline(config, pipeline.prepare(config), 1)
  return {"tokens_per_second": 128 * each_second(rows)}


def image_rows(folder: Path) -> dict[str, float]:
  """Measures examples per second of Fashion-MNIST, with batches of 64."""
  from bigmodel.data import pipeline
  from bigmodel.study import default_config

  del folder
  config = default_config("mlp")
  config.train.steps = 1
  return {"examples_per_second": each_second(pipeline.train_pipeline(config, pipeline.prepare(config), 1))}


def each_second(rows: Any, seconds: float = 3.0) -> float:
  rows.batch(0)
  began, step = time.perf_counter(), 0
  while time.perf_counter() - began < seconds:
    step += 1
    rows.batch(step)
  return step * rows.batch_size / (time.perf_counter() - began)


if __name__ == "__main__":
  main()
