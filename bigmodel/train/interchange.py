"""Weights as Hugging Face files: a run's folder from such files, and such files from a run."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath

from bigmodel import accounting, models, optim
from bigmodel.config import Config, flatten, require
from bigmodel.data import corpus, tokenizer_files
from bigmodel.data.tokenizer_files import TextEnds, TextFiles
from bigmodel.errors import UserError
from bigmodel.files import absolute, refused, write_json, write_text
from bigmodel.models.imported import huggingface, huggingface_folder
from bigmodel.models.imported.huggingface_config import Imported as Description
from bigmodel.readers.safetensors import Tensor
from bigmodel.train import parameters
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.configs import default_config, read_config
from bigmodel.train.imported_runs import IMPORTED, is_imported, text_ends
from bigmodel.train.run import Run
from bigmodel.train.step import State
from bigmodel.types import Params


@dataclasses.dataclass(frozen=True)
class Imported:
  """The run that was made from Hugging Face files."""

  run_id: str
  family: str
  source_type: str  # the architecture as Hugging Face names it
  params: accounting.Params
  context: int
  notes: tuple[str, ...]  # what was assumed or left out


@dataclasses.dataclass(frozen=True)
class Exported:
  """The Hugging Face files that were written."""

  folder: str
  type: str  # the architecture as Hugging Face names it
  tensors: int
  step: int
  tokenizer: bool  # whether a tokenizer was written
  notes: tuple[str, ...]  # what was left out


def import_weights(source: str, workdir: epath.PathLike, context: int = 0) -> Imported:
  """Makes a run's folder at step 0 from a folder with config.json and *.safetensors.

  A `context` other than 0 replaces that of config.json; learned positions are cut to it.
  """
  folder, target = Path(source), absolute(workdir)
  _require_new(target, f"import: --workdir {target}")
  found = huggingface_folder.read(folder)
  described = huggingface.fields_of(found.config, found.tensors)
  config, kind = _config(described, context), str(found.config["model_type"])
  text = TextFiles(TextEnds(None, None), {}, ())
  if config.data.kind == "text":
    text = tokenizer_files.read(folder, found.config, config.model.vocab)
  params = _params(found.tensors, kind, config, described)
  parameters.require_finite(params, f"import: {source}")
  with refused(target):
    _save_initial(config, params, target)
    limit = described.limit if described.fields.get("positions") == "rotary" else None  # others have no more rows
    ends = msgspec.structs.replace(text.ends, limit=limit)
    write_json(target / IMPORTED, msgspec.to_builtins(ends))
    for name, content in text.files.items():
      write_text(target / name, content)
    write_json(target / "config.json", flatten(config))
  notes = (*found.notes, *described.notes, *text.notes)
  counts = models.counts_of(config).params()
  return Imported(Run(config, target).run_id, described.family, kind, counts, config.data.get("context", 1), notes)


def _require_new(folder: epath.Path, where: str) -> None:
  """Raises `UserError` unless a folder is empty or can be made; `where` begins the message."""
  require(not folder.exists() or folder.is_dir(), f"{where}: is a file; name a new or empty folder")
  require(not (folder / "config.json").exists(), f"{where}: holds a run or a model; choose another folder")
  require(not folder.exists() or not any(folder.iterdir()), f"{where}: is not empty; choose another folder")
  if "://" not in str(folder):
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    require(parent.is_dir(), f"{where}: cannot write here ({parent} is a file)")
    require(os.access(parent, os.W_OK | os.X_OK), f"{where}: cannot write here ({parent} is read-only)")


def _config(described: Description, context: int) -> Config:
  """The config of imported weights; a `context` other than 0 replaces theirs."""
  config = default_config(described.family)
  config.model.update(described.fields)
  if config.data.kind == "text":
    limit = described.limit
    require(
      limit is None or context <= limit,
      f"import: --context: {context} is more than the {limit} tokens up to which this model can be computed here",
    )
    config.data.update(name="text_files", context=context or described.context)
  else:
    require(not context, f"import: --context: a {described.family} does not read text")
  config.train.steps = 1
  models.check(config)
  return config


def _params(tensors: Mapping[str, Tensor], kind: str, config: Config, described: Description) -> Params:
  """The parameters of a config's model, from tensors of a model that may have more learned positions."""
  whole = config.copy_and_resolve_references()
  if config.data.kind == "text":
    whole.data.context = described.context
  arrays = huggingface.params_of(tensors, kind, whole, parameters.real_shapes(whole))
  huggingface.scale_queries(arrays, described)
  shapes = parameters.shapes_of(config)
  cut = {name: array[: shapes[name][0]] for name, array in arrays.items()}
  return _nested({name: parameters.padded(array, shapes[name]) for name, array in cut.items()})


def _save_initial(config: Config, params: Params, folder: epath.Path) -> None:
  """Saves a checkpoint of step 0 with these parameters."""
  state = State(jnp.int32(0), params, optim.initial_state(optim.How.of(config), params), jnp.float32(0), jnp.int32(-1))
  folder.mkdir(parents=True, exist_ok=True)
  store = Checkpoints(folder / "checkpoints")
  store.save(0, state)
  store.close()


def _nested(flat_params: dict[str, np.ndarray]) -> Params:
  """Nested dictionaries from dotted names."""
  tree: Params = {}
  for name, value in flat_params.items():
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def export_weights(workdir: epath.PathLike, target: str, kind: str) -> Exported:
  """Writes the newest sound checkpoint of a run as config.json, model.safetensors and the files of its tokenizer."""
  from safetensors.numpy import save_file

  config, folder = read_config(workdir), Path(target)
  models.check(config)  # a model may be exported whatever its task
  _require_new(absolute(target), f"export: --to {target}")
  hf_config = huggingface.config_of(kind, config)
  store = Checkpoints(absolute(workdir) / "checkpoints")
  step = store.newest_sound()
  if step is None:
    raise UserError(f"export: {workdir} has no sound checkpoint")
  parameters.warn_of_divergence(workdir, step)
  params, rows = parameters.evaluated(config, store, step), models.real_rows(config)
  params = {name: x[: rows[name]] if name in rows else x for name, x in params.items()}
  store.close()
  parameters.require_finite(params, f"export: {workdir}: checkpoint of step {step}")
  tensors = huggingface.tensors_of({name: np.asarray(x) for name, x in params.items()}, kind, config)
  text = TextFiles(TextEnds(None, None), {}, ())
  if config.data.kind == "text":
    text = _text_files(config, absolute(workdir))
  with refused(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in text.files.items():
      write_text(folder / name, content)
    write_json(folder / "config.json", hf_config | tokenizer_files.ids(text.ends))
  return Exported(str(folder), kind, len(tensors), step, tokenizer_files.TOKENIZER in text.files, text.notes)


def _text_files(config: Config, workdir: epath.Path) -> TextFiles:
  """The files about text to export with a run: those that were imported, or those of the tokenizer of its corpus."""
  given = workdir if is_imported(workdir) else absolute(config.data.tokenizer).parent
  if is_imported(given):
    ends = text_ends(given)
    assert ends is not None
    return tokenizer_files.copied(given, ends, config.data.context)
  try:
    tokens = corpus.tokenizer_of(config)
    require(
      tokens.vocab <= config.model.vocab, f"the model has {config.model.vocab} tokens, its tokenizer {tokens.vocab}"
    )
    return tokenizer_files.made(tokens, config.data.context)
  except (UserError, OSError) as error:
    return TextFiles(TextEnds(None, None), {}, (f"no tokenizer was written: {error}",))
