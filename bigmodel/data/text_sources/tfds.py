"""The text of any TFDS dataset that is prepared as array_record; `data.name` is its name."""

import os
from typing import cast

from bigmodel.config import Config
from bigmodel.data import builders
from bigmodel.data.documents import manifest_sha256
from bigmodel.data.sources import Documents, Source
from bigmodel.errors import UserError


def read(data: Config) -> Documents:
  """The values of the feature `data.text_key` in `data.train_split` and `data.eval_split`."""
  name = data.name.removeprefix("tfds/")
  builder = builders.prepared(name, os.path.expanduser(data.dir), "a source of text, such as text_files,")
  splits = {"train": data.train_split, "validation": data.eval_split}
  opened = {}
  for split, of_dataset in splits.items():
    try:
      opened[split] = builders.rows(builder, of_dataset)
    except Exception as error:
      raise UserError(f"config.data: {name} has no split {of_dataset!r} ({error})") from error
  features = cast(dict[str, object], builder.info.features or {})
  if data.text_key not in features:
    raise UserError(f"config.data.text_key: {name} has no feature {data.text_key!r}; it has {', '.join(features)}")
  whole_splits = sorted({of_dataset.split("[")[0] for of_dataset in splits.values()})
  files = [builders.fingerprint(path) for split in whole_splits for path in builder.info.splits[split].filepaths]
  sha256 = manifest_sha256([], builder.info.full_name, data.text_key, splits, files)
  return Documents(sha256, lambda: {split: builders.RowTexts(rows, data.text_key) for split, rows in opened.items()})


SOURCE = Source(read)
