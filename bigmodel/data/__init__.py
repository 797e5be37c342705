"""Data: TFDS builders, tokenizers, and a pipeline that is a function of (seed, step).

A corpus is prepared once as array_record through TFDS (without TensorFlow), then
tokenized once into one array, cached by content; `pipeline.batch` reads rows of it.
"""

from typing import Any

from bigmodel.config import Config, require, require_choice

TOKENIZERS = ("bytes", "bpe")


def fields() -> dict[str, Any]:
  """The fields of `config.data`, with defaults."""
  return {
    "name": "python_source",  # python_source | text_files | any TFDS name that is prepared
    "path": "",  # text_files: a path or glob of .txt .md .jsonl, plain or .gz .zst .xz
    "distributions": (),  # python_source: distributions to train on
    "heldout": (),  # python_source: distributions to evaluate on
    "heldout_fraction": 0.02,  # text_files: share of the documents to evaluate on
    "text_key": "text",  # jsonl, TFDS: the field that holds the text
    "train_split": "train",  # TFDS
    "eval_split": "validation",  # TFDS
    "dir": "",  # where TFDS data lie; '' is the cache
    "tokenizer": "bytes",
    "vocab_size": 4096,  # bpe
    "context": 128,
    "tokens": 0,  # unique training tokens to use, a prefix of the corpus; 0 is all of it
    "repeat": False,  # may a run see a token more than once?
    "seed": 0,  # order of the rows
    "sha256": "",  # the prepared corpus; filled in when empty, refused when it differs
  }


def check(config: Config) -> None:
  """Refuses `config.data` that cannot work, before any file is read."""
  data = config.data
  require_choice("data.tokenizer", data.tokenizer, TOKENIZERS)
  require(data.context >= 2, f"config.data.context: {data.context} is too short; at least 2")
  require(data.tokens >= 0, f"config.data.tokens: {data.tokens} is negative; 0 takes all")
  require(0 < data.heldout_fraction < 1, "config.data.heldout_fraction: between 0 and 1, please")
  if data.name == "python_source":
    require(bool(data.distributions), "config.data.distributions: empty; name installed distributions")
    require(bool(data.heldout), "config.data.heldout: empty; name distributions to evaluate on")
    both = sorted(set(data.distributions) & set(data.heldout))
    require(not both, f"config.data.heldout: {', '.join(both)} is also trained on")
  if data.name == "text_files":
    require(bool(data.path), "config.data.path: empty; give a path or glob of .txt, .md or .jsonl files")
  if data.tokenizer == "bpe":
    require(
      257 <= data.vocab_size <= 65536,
      f"config.data.vocab_size: {data.vocab_size} is not between 257 and 65536",
    )
