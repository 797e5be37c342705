"""Finds the config and the tensors in a folder that was downloaded from Hugging Face, or says what it has instead."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bigmodel.errors import UserError
from bigmodel.readers import json_document, safetensors
from bigmodel.readers.json_lines import shortened
from bigmodel.readers.safetensors import Tensor

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
CONVERT = (
  "convert the weights where they can be read, with `AutoModelForCausalLM.from_pretrained(FOLDER)` of transformers"
  " (or the class of the model), then `.save_pretrained(OTHER_FOLDER, safe_serialization=True)`"
)
MISTRAL = (
  "the weights are in the original layout of Mistral and Meta (params.json, consolidated.*), whose tensors have other"
  " names; download the files model*.safetensors and config.json of the same repository, or convert the folder with"
  " `convert_mistral_weights_to_hf.py` or `convert_llama_weights_to_hf.py` of transformers"
)
# Files in other formats, with what they are and what to do, in the order in which they are looked for.
OTHERS = (
  ("consolidated*", MISTRAL),
  ("params.json", MISTRAL),
  ("*.gguf", "a GGUF file of llama.cpp, whose weights are usually quantised; import the model that it was made from"),
  ("pytorch_model*.bin*", f"a PyTorch file, which can run code when it is opened; {CONVERT}"),
  ("*.pt", f"a PyTorch file, which can run code when it is opened; {CONVERT}"),
  ("*.pth", f"a PyTorch file, which can run code when it is opened; {CONVERT}"),
  ("*.bin", f"a PyTorch file, which can run code when it is opened; {CONVERT}"),
  ("*.ckpt*", f"a checkpoint of TensorFlow or Lightning; {CONVERT}"),
  ("*.h5", f"a file of TensorFlow; {CONVERT}"),
  ("*.msgpack", f"a file of Flax; {CONVERT}"),
  ("*.onnx", "an ONNX file; import the model that it was made from"),
)
# Files of training tools, which hold no weights.
OF_TRAINING = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler", "trainer_state")
# Ends of names of tensors that only these have.
FOREIGN = {
  "an adapter (LoRA), which is not merged into its model": re.compile(r"\.lora_|lora_(A|B|embedding)|^base_model\."),
  "quantised": re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|weight_packed|weight_scale(_inv|_2)?|input_scale|weight_zero_point)$"
    r"|\.quant_state\.|\.absmax|\.nested_"
  ),
}


@dataclasses.dataclass(frozen=True)
class Source:
  """The config.json and the tensors of a folder, and notes on what was left out."""

  folder: Path
  config: Mapping[str, object]
  tensors: Mapping[str, Tensor]
  notes: tuple[str, ...]


def read(folder: Path) -> Source:
  """Reads config.json and the headers of the weights. Raises `UserError` for what cannot be imported."""
  _require_model(folder)
  config = json_document.read(folder / "config.json")
  if "model_type" not in config and "error" in config:
    raise UserError(f"{folder / 'config.json'}: an error was saved in its place: {shortened(config['error'])}")
  quantised = next((name for name in ("quantization_config", "compression_config") if config.get(name)), "")
  if quantised:
    details = config[quantised]
    method = details.get("quant_method", "") if isinstance(details, dict) else ""
    raise UserError(
      f"import: {folder / 'config.json'}: {quantised} = {shortened(details)}: quantised weights"
      f"{f' ({method})' if method else ''} cannot be imported; use the weights before quantisation"
    )
  tensors, notes = _tensors(folder)
  for what, pattern in FOREIGN.items():
    name = next(filter(pattern.search, tensors), "")
    if name:
      advice = "merge it first" if "adapter" in what else "use the weights before quantisation"
      raise UserError(f"import: {tensors[name].path}: tensor {name!r}: the weights are {what}; {advice}")
  return Source(folder, config, tensors, notes)


def _require_model(folder: Path) -> None:
  """Raises `UserError`, with what is there instead, for folders without a model."""
  if not folder.exists():
    raise UserError(
      f"import: no folder {str(folder)!r}; download a model first, as with `hf download NAME --local-dir FOLDER`"
    )
  if not folder.is_dir():
    raise UserError(f"import: {folder} is a file; name the folder that holds config.json and *.safetensors")
  adapter = folder / "adapter_config.json"
  if adapter.exists() or (folder / "adapter_model.safetensors").exists():
    base = json_document.read(adapter).get("base_model_name_or_path") if adapter.exists() else None
    raise UserError(
      f"import: {folder} holds an adapter (LoRA){f' for {shortened(base)}' if base else ''} and not a whole model;"
      " merge it first, with `PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)` of peft"
    )
  for file in (folder / "config.json", *folder.glob("*.safetensors"), folder / INDEX):
    if file.is_symlink() and not file.exists():
      raise UserError(f"import: {file} is a link to {file.readlink()}, which does not exist; repeat the download")
  if not (folder / "config.json").is_file():
    raise UserError(f"import: {folder} has no config.json{_instead(folder)}")


def _instead(folder: Path) -> str:
  """What a folder has instead of config.json or weights, and what to do, to end a message."""
  incomplete = next(folder.rglob("*.incomplete"), None)
  if incomplete is not None:
    return f"; {incomplete.relative_to(folder)} is left of an interrupted download, so repeat the download"
  for pattern, what in OTHERS:
    files = sorted(path.name for path in folder.glob(pattern) if not path.name.startswith(OF_TRAINING))
    if files:
      return f"; {files[0]}: {what}"
  inside = sorted({path.parent for path in [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]})
  if inside:
    return f"; did you mean {' or '.join(map(str, inside[:3]))}?"
  return ""


def _tensors(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors of a folder by name, and notes on files that are not read."""
  if (folder / INDEX).exists():
    return _indexed(folder)
  files = sorted(path.name for path in folder.glob("*.safetensors"))
  if WHOLE in files:
    return _together(folder, [WHOLE]), _ignored(files, [WHOLE], f"{WHOLE} is read")
  shards = [file for file in files if SHARD.fullmatch(file)]
  if shards:
    _require_all_shards(folder, shards)
    notes = (f"{folder} has no {INDEX}, so all of its {len(shards)} shards are read",)
    return _together(folder, shards), notes + _ignored(files, shards, "the shards are read")
  usual = [file for file in files if not file.startswith("consolidated")]
  if len(usual) == 1:
    return _together(folder, usual), (f"{usual[0]} is read, as there is no {WHOLE}",)
  if usual:
    raise UserError(
      f"import: {folder} has neither {WHOLE} nor {INDEX} but {', '.join(usual[:5])}; rename the file with the model's"
      f" weights to {WHOLE}, or add the index"
    )
  raise UserError(f"import: {folder} has no *.safetensors{_instead(folder)}")


def _ignored(files: Iterable[str], read: Iterable[str], why: str) -> tuple[str, ...]:
  """A note on the files that are not read; `why` has THEM for the files."""
  others = [file for file in files if file not in set(read) and not file.startswith("consolidated")]
  why = why.replace("THEM", "it" if len(others) == 1 else "them")
  return (f"not read: {', '.join(others)}, as {why}",) if others else ()


def _require_all_shards(folder: Path, shards: list[str]) -> None:
  """Raises `UserError` unless these are all shards of one model."""
  parts = [match for match in map(SHARD.fullmatch, shards) if match]
  kinds = {(part["stem"], part["count"]) for part in parts}
  if len(kinds) > 1:
    raise UserError(f"import: {folder} has shards of several models and no {INDEX}: {', '.join(shards[:5])}")
  (stem, count), present = kinds.pop(), {int(part["number"]) for part in parts}
  missing = [n for n in range(1, min(int(count), len(shards) + 5) + 1) if n not in present]
  if missing:
    names = ", ".join(f"{stem}-{n:05}-of-{count}.safetensors" for n in missing[:5])
    raise UserError(f"import: {folder} lacks shards: {names}; repeat the download")


def _indexed(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
  """The tensors that the index lists, each from the shard that it names."""
  path = folder / INDEX
  places = json_document.read(path).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise UserError(f"import: {path} has no weight_map from the names of tensors to files")
  for name, file in places.items():
    if not isinstance(file, str) or Path(file).name != file or not file.isprintable() or file[-12:] != ".safetensors":
      raise UserError(
        f"import: {path}: weight_map[{name!r}] = {shortened(file)} is not the name of a *.safetensors file"
      )
  shards = sorted(set(places.values()))
  _require_present(folder, shards)
  tensors = {}
  headers = {shard: safetensors.read(folder / shard) for shard in shards}
  for name, shard in places.items():
    if name not in headers[shard]:
      raise UserError(f"import: {folder / shard} has no tensor {name!r}, which {INDEX} lists there")
    tensors[name] = headers[shard][name]
  unlisted = sum(name not in places for header in headers.values() for name in header)
  which = f"{unlisted} tensor{'s' if unlisted > 1 else ''}"
  notes = (f"not read: {which} in the shards that {INDEX} does not list",) if unlisted else ()
  files = sorted(path.name for path in folder.glob("*.safetensors"))
  return tensors, notes + _ignored(files, shards, f"{INDEX} does not list THEM")


def _require_present(folder: Path, shards: list[str]) -> None:
  """Raises `UserError` with the names of shards that are missing."""
  missing = [shard for shard in shards if not (folder / shard).is_file()]
  if not missing:
    return
  more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
  advice = "repeat the download"
  if len(missing) == len(shards) and (folder / WHOLE).is_file():
    advice = f"or, if {WHOLE} is the whole model, delete the index"
  incomplete = next(folder.rglob("*.incomplete"), None)
  rest = f" ({incomplete.relative_to(folder)} is left of an interrupted one)" if incomplete else ""
  raise UserError(
    f"import: {folder} lacks {len(missing)} of the {len(shards)} files that {INDEX} lists:"
    f" {', '.join(missing[:5])}{more}; {advice}{rest}"
  )


def _together(folder: Path, files: Iterable[str]) -> dict[str, Tensor]:
  """The tensors of several files."""
  tensors: dict[str, Tensor] = {}
  for file in files:
    for name, tensor in safetensors.read(folder / file).items():
      if name in tensors:
        raise UserError(
          f"import: tensor {name!r} is in {tensors[name].path.name} and in {file}, and there is no {INDEX}"
        )
      tensors[name] = tensor
  return tensors
