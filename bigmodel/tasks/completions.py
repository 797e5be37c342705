"""Completions: a decoder's continuations of the prompts in a JSONL, compared with references by BLEU and chrF."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from bigmodel.config import require
from bigmodel.data.tokenizer import Tokenizer
from bigmodel.readers import json_lines
from bigmodel.tasks import metrics

log = logging.getLogger("bigmodel")


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Pairs of prompt tokens and reference, and the number of prompts that were skipped because they are too long."""

  pairs: list[tuple[np.ndarray, str]]
  skipped: int = 0


def read(path: str, tokens: Tokenizer, context: int, skip_long: bool = False) -> Prompts:
  """Reads lines {"prompt": text, "completion": text}; an error names the invalid line.

  `skip_long` skips prompts that leave no room in the context for a completion, which are refused otherwise. Blanks at
  the end of a prompt become the beginning of its completion, because tokenizers join a blank with the word after it.
  """
  path = os.path.expanduser(path)
  require(os.path.isfile(path), f"--completions: no file {path!r}")
  pairs, skipped, blanks = [], 0, 0
  for number, asked in json_lines.rows(path):
    where = f"--completions: {path}, line {number}"
    prompt, completion = (
      json_lines.text(json_lines.value(asked, key, where), key, where) for key in ("prompt", "completion")
    )
    require(bool(completion.strip()), f"{where}: the completion is empty")
    bare = prompt.rstrip(" \t")
    blanks += bare != prompt
    row = np.concatenate([[tokens.begin], tokens.encode(bare)]).astype(np.int32)
    if len(row) > context:
      room = f"{where}: {len(row) - 1} tokens leave no room in the context of {context}"
      require(skip_long, f"{room}; see --skip-long")
      skipped += 1
      continue
    pairs.append((row, prompt[len(bare) :] + completion))
  require(
    bool(pairs) or not skipped, f"--completions: {path}: none of {skipped} prompts leaves room in {context} tokens"
  )
  require(bool(pairs), f"--completions: {path} has no prompts")
  if blanks:
    log.warning("--completions: %d prompts end in blanks, which are taken as the start of the completion", blanks)
  return Prompts(pairs, skipped)


def score(
  prompts: Prompts,
  complete: Callable[[np.ndarray], Sequence[str]],
  batch: int,
  resamples: int,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """Returns BLEU, chrF and exact matches of `complete(prompts of equal length)`, and their bootstrap intervals."""
  asked = prompts.pairs
  completions: list[str] = [""] * len(asked)
  for length in sorted({len(row) for row, _ in asked}):  # grouped by length, because each length compiles separately
    places = [i for i, (row, _) in enumerate(asked) if len(row) == length]
    for first in range(0, len(places), batch):
      mine = places[first : first + batch]
      rows = np.stack([asked[i][0] for i in np.resize(mine, batch)])
      for place, text in zip(mine, complete(rows), strict=False):
        completions[place] = text
  references_of_all = [completion for _, completion in asked]

  def metric(times: np.ndarray) -> dict[str, float]:
    drawn = np.repeat(np.arange(len(asked)), times.astype(int))
    texts, references = [completions[i] for i in drawn], [references_of_all[i] for i in drawn]
    same = np.mean([a == b for a, b in zip(texts, references, strict=True)])
    return {**metrics.bleu(texts, references), "exact": float(same)}

  ones = np.ones(len(asked))
  return metric(ones) | {"prompts": len(asked), "skipped": prompts.skipped}, metrics.bootstrap(
    metric, np.arange(len(asked)), ones, resamples
  )
