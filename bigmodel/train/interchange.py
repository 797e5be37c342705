"""Weights as Hugging Face files: a run's folder from such files, and such files from a run."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath

from bigmodel import accounting, models, optim
from bigmodel.config import Config, flatten, require
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, absolute, read_json, write_json
from bigmodel.models.imported import huggingface
from bigmodel.train import configs, parameters
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.configs import default_config, read_config
from bigmodel.train.run import Run
from bigmodel.train.step import State
from bigmodel.types import Params

IMPORTED = "imported.json"


class TextEnds(msgspec.Struct, frozen=True):
  """The tokens that begin and end a text of imported weights, where their config.json names them."""

  begin: int | None
  end: int | None


@dataclasses.dataclass(frozen=True)
class Imported:
  """The run that was made from Hugging Face files."""

  run_id: str
  family: str
  source_type: str  # the architecture as Hugging Face names it
  params: accounting.Params


@dataclasses.dataclass(frozen=True)
class Exported:
  """The Hugging Face files that were written."""

  folder: str
  type: str  # the architecture as Hugging Face names it
  tensors: int
  step: int


def is_imported(folder: epath.PathLike) -> bool:
  """Whether a run's folder was made from Hugging Face files."""
  return (absolute(folder) / IMPORTED).exists()


def text_ends(folder: epath.PathLike) -> TextEnds | None:
  """The tokens that begin and end a text, for imported weights; None for the folder of a trained run."""
  return msgspec.convert(read_json(absolute(folder) / IMPORTED), TextEnds) if is_imported(folder) else None


def import_weights(source: str, workdir: epath.PathLike) -> Imported:
  """Makes a run's folder at step 0 from a folder with config.json and *.safetensors."""
  folder, target = Path(source), absolute(workdir)
  require((folder / "config.json").is_file(), f"import: {source} has no config.json")
  require(not (target / "config.json").exists(), f"import: {target} holds a run; choose another --workdir")
  tensors, hf_config = _read_tensors(folder), read_json(folder / "config.json")
  try:
    family, fields, context = huggingface.fields_of(hf_config, tensors)
  except KeyError as error:
    raise UserError(f"import: {folder / 'config.json'} has no {error}") from error
  config = default_config(family)
  config.model.update(fields)
  if config.data.kind == "text":
    config.data.update(name="text_files", context=context)
  config.train.steps = 1
  shapes = parameters.shapes_of(config)
  arrays = huggingface.params_of(tensors, hf_config["model_type"], config, parameters.real_shapes(config))
  parameters.require_finite(arrays, f"import: {source}")
  params = _nested({name: parameters.padded(array, shapes[name]) for name, array in arrays.items()})
  _save_initial(config, params, target)
  write_json(
    target / IMPORTED, {"begin": _first_id(hf_config, "bos_token_id"), "end": _first_id(hf_config, "eos_token_id")}
  )
  if (folder / "tokenizer.json").is_file():
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
  write_json(target / "config.json", flatten(config))
  return Imported(Run(config, target).run_id, family, hf_config["model_type"], models.counts_of(config).params())


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  files = sorted(folder.glob("*.safetensors"))
  require(bool(files), f"import: {folder} has no *.safetensors")
  tensors: dict[str, np.ndarray] = {}
  for file in files:
    try:
      tensors |= load_file(file)
    except (SafetensorError, TypeError) as error:
      raise UserError(f"import: {file} cannot be read: {error}") from error
  return tensors


def _save_initial(config: Config, params: Params, folder: epath.Path) -> None:
  """Saves a checkpoint of step 0 with these parameters."""
  state = State(jnp.int32(0), params, optim.initial_state(optim.How.of(config), params), jnp.float32(0), jnp.int32(-1))
  folder.mkdir(parents=True, exist_ok=True)
  store = Checkpoints(folder / "checkpoints")
  store.save(0, state)
  store.close()


def _first_id(hf_config: JsonObject, name: str) -> int | None:
  """The first id of a special token in a Hugging Face config, which has one id or a list."""
  ids = hf_config.get(name)
  return next(iter(ids), None) if isinstance(ids, list) else ids


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
  """Writes the newest sound checkpoint of a run as config.json and model.safetensors."""
  from safetensors.numpy import save_file

  config = read_config(workdir)
  configs.check_without_data(config)
  store = Checkpoints(absolute(workdir) / "checkpoints")
  step = store.newest_sound()
  if step is None:
    raise UserError(f"export: {workdir} has no sound checkpoint")
  parameters.warn_of_divergence(workdir, step)
  params, rows = parameters.evaluated(config, store, step), models.real_rows(config)
  params = {name: x[: rows[name]] if name in rows else x for name, x in params.items()}
  store.close()
  parameters.require_finite(params, f"export: {workdir}: checkpoint of step {step}")
  hf_config = huggingface.config_of(kind, config)
  tensors = huggingface.tensors_of({name: np.asarray(x) for name, x in params.items()}, kind, config)
  folder = Path(target)
  require(not folder.exists() or not any(folder.iterdir()), f"export: {target} is not empty")
  folder.mkdir(parents=True, exist_ok=True)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  write_json(folder / "config.json", hf_config)
  return Exported(str(folder), kind, len(tensors), step)
