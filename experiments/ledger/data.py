"""Data of the studies of `experiments/ledger.py`, from what is installed: text, tables of characters, small images."""

import functools
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.config import Config
from bigmodel.data import sources
from bigmodel.data.sources import Arrays

DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
SHORTEST = 200  # characters of a docstring that is a document
BEFORE = 6  # characters before the one to predict, in rows of a table
ROWS, HELD_OUT = 480_000, 16_384  # of a table
OTHER = 95  # the class of characters that are not printable ASCII; those are 0 to 94


def python(data: Config) -> list[str]:
  """A document for each file of Python source of `data.distributions`."""
  return list(_files(tuple(data.distributions)))


def english(data: Config) -> list[str]:
  """A document for each long docstring of `data.distributions`."""
  return list(_docstrings(tuple(data.distributions)))


def bits(data: Config) -> dict[str, np.ndarray]:
  """Rows of the bits of some characters of English; the class is the character that follows."""
  rows, heldout = _characters(data.path)
  shifts = np.arange(7)
  inputs = (rows[:, :-1, None] >> shifts & 1).reshape(len(rows), -1).astype(np.uint8)
  return {"inputs": inputs, "targets": rows[:, -1], "heldout": heldout}


def characters(data: Config) -> pl.DataFrame:
  """The same characters as a table with a column for each, and the column `next`; `part` divides it."""
  rows, heldout = _characters(data.path)
  names = [f"before_{BEFORE - i}" for i in range(BEFORE)]
  frame = pl.DataFrame({name: rows[:, i] for i, name in enumerate([*names, "next"])})
  texts = [pl.format("c{}", pl.col(name)).alias(name) for name in frame.columns]
  return frame.select(*texts, pl.Series("part", heldout.astype(int)))


def small_images(data: Config) -> Arrays:
  """The images of `data.path` in the IDX format at half their size: the mean of each square of four pixels."""
  from bigmodel.data.example_sources import idx_images

  arrays = idx_images.read(data)
  count, height, width, channels = arrays.inputs.shape
  squares = np.asarray(arrays.inputs, np.float32).reshape(count, height // 2, 2, width // 2, 2, channels)
  small = squares.mean(axis=(2, 4)).round().astype(np.uint8)
  return sources.of_arrays(small, np.asarray(arrays.targets), heldout=arrays.heldout)


@functools.cache
def _files(distributions: tuple[str, ...]) -> tuple[str, ...]:
  """The text of every Python file, each content once."""
  texts: dict[str, None] = {}
  for name in distributions:
    distribution = importlib.metadata.distribution(name)
    for file in sorted(distribution.files or (), key=str):
      path = Path(str(distribution.locate_file(file)))
      if file.suffix == ".py" and path.is_file():
        texts[path.read_text(encoding="utf-8", errors="ignore")] = None
  return tuple(text for text in texts if text.strip())


@functools.cache
def _docstrings(distributions: tuple[str, ...]) -> tuple[str, ...]:
  found: dict[str, None] = {}
  for text in _files(distributions):
    for docstring in DOCSTRING.findall(text):
      lines = [line.strip() for line in docstring.splitlines()]
      if len(docstring) >= SHORTEST:
        found["\n".join(lines).strip() + "\n"] = None
  return tuple(found)


@functools.cache
def _characters(distributions: str) -> tuple[np.ndarray, np.ndarray]:
  """Codes int[rows, BEFORE + 1] of characters at random places, and which rows are held out, with their documents."""
  random = np.random.default_rng(0)
  documents = _docstrings(tuple(distributions.split(",")))
  joined = "".join(documents[i] for i in random.permutation(len(documents))).replace("\n", " ")
  values = np.frombuffer(joined.encode("ascii", "replace"), np.uint8)
  codes = np.where((values >= 32) & (values < 127), values - 32, OTHER).astype(np.int64)
  last = len(codes) // 20
  held = random.choice(last - BEFORE - 1, HELD_OUT, replace=False)
  trained = random.choice(np.arange(last, len(codes) - BEFORE - 1), ROWS, replace=False)
  places = np.concatenate([trained, held])
  return codes[places[:, None] + np.arange(BEFORE + 1)], np.arange(len(places)) >= ROWS
