"""Converts the positions of Llama, Mistral and Mixtral: wavelengths, their scaling, the context and sliding windows."""

import dataclasses
from collections.abc import Mapping

from bigmodel.config import Config, require
from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.files import JsonObject
from bigmodel.models.imported.huggingface_fields import Fields, printable
from bigmodel.readers.json_lines import shortened

# The entries of each kind of scaling that is supported, beside its name and the base.
ORIGINAL = "original_max_position_embeddings"
ENTRIES = {
  "default": (),
  "linear": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
  "dynamic": ("factor", ORIGINAL),
}
NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
WINDOWED, FULL = ("sliding_attention", "sliding_window"), ("full_attention", "attention")


@dataclasses.dataclass(frozen=True)
class Positions:
  """What a config.json says about positions, in our terms."""

  fields: Mapping[str, Value]  # of `config.model`
  context: int
  limit: int | None  # the context beyond which their computation differs from ours
  notes: tuple[str, ...]


def read(fields: Fields) -> Positions:
  """Reads a config.json. Raises `UserError` for positions that are not supported."""
  longest = fields.whole("max_position_embeddings")
  entries = _entries(fields)
  kind, scaling = _kind(entries), Fields(dict.fromkeys(ENTRIES["llama3"]) | entries)
  notes, limits = [], []
  if kind == "dynamic":
    limits.append(min(longest, scaling.optional(ORIGINAL, longest)))
    notes.append(f"dynamic scaling of positions has no effect in contexts of up to {limits[0]} tokens, the most here")
  window = _window(fields)
  if window is not None:
    limits.append(window)
  context = min([longest, *limits])
  if window is not None and window < longest:
    notes.append(
      f"the context is {context} and not {longest}: in longer ones, attention would have a window of {window}"
      " tokens, which is not supported"
    )
  ours = {"rotary_base": _base(fields, entries), **_scaled(kind, scaling, longest)}
  return Positions(ours, context, min(limits, default=None), tuple(notes))


def _entries(fields: Fields) -> dict[str, object]:
  """The entries about the scaling of positions; newer versions of transformers have another name for them."""
  given = {name: fields.values[name] for name in ("rope_scaling", "rope_parameters") if fields.values[name]}
  for name, value in given.items():
    if not isinstance(value, dict):
      raise fields.invalid(name, "an object")
  both = [dict(value) for value in given.values() if isinstance(value, dict)]
  merged: dict[str, object] = {}
  for entries in both:
    for name, value in entries.items():
      if merged.setdefault(name, value) != value:
        raise UserError(f"import: config.json: rope_scaling and rope_parameters differ in {name!r}")
  return merged


def _kind(entries: Mapping[str, object]) -> str:
  """The kind of scaling. Raises `UserError` for kinds and entries that are not supported."""
  kind = entries.get("rope_type") or entries.get("type") or "default"
  if "type" in entries and entries["type"] not in (None, kind):
    raise UserError(
      f"import: config.json: the scaling of positions has the rope_type {shortened(kind)} and the type"
      f" {shortened(entries['type'])}; delete the wrong one"
    )
  if not isinstance(kind, str) or kind not in ENTRIES:
    raise UserError(
      f"import: config.json: scaled rotary positions of the kind {shortened(kind)} are not supported; only"
      f" {', '.join(ENTRIES)}"
    )
  if entries.get("partial_rotary_factor") not in (None, 1):
    raise UserError(
      f"import: config.json: partial_rotary_factor = {shortened(entries['partial_rotary_factor'])} is not supported;"
      " only 1"
    )
  for name, value in entries.items():
    if kind == "default" and isinstance(value, dict):
      raise UserError(f"import: config.json: rotary positions that differ between layers ({name!r}) are not supported")
    if value is not None and name not in (*NAMES, *ENTRIES[kind]):
      without = "; there, name the scaling as rope_type, or delete the entry" if kind == "default" else ""
      raise UserError(
        f"import: config.json: {printable(name)} = {shortened(value)} is unknown for the scaling {kind!r} of"
        f" positions{without}"
      )
  return kind


def _scaled(kind: str, scaling: Fields, longest: int) -> dict[str, Value]:
  """Our fields for a kind of scaling."""
  if kind == "linear":
    return {"rotary_factor": scaling.number("factor")}
  if kind != "llama3":
    return {}
  low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
  require(low < high, f"import: config.json: high_freq_factor = {high:g} is not more than low_freq_factor = {low:g}")
  return {
    "rotary_factor": scaling.number("factor"),
    "rotary_context": scaling.optional(ORIGINAL, longest),
    "rotary_low": low,
    "rotary_high": high,
  }


def _base(fields: Fields, entries: Mapping[str, object]) -> float:
  """The longest wavelength, which is given beside the entries of the scaling or among them."""
  inside, beside = entries.get("rope_theta"), fields.given.get("rope_theta")
  if inside is not None and beside is not None and inside != beside:
    raise UserError(
      f"import: config.json: rope_theta is {shortened(beside)}, and {shortened(inside)} among the parameters of rope"
    )
  if inside is None:
    return fields.number("rope_theta")
  return Fields({"rope_theta": inside}).number("rope_theta")


def _window(fields: Fields) -> int | None:
  """The tokens that a token attends to at most, itself included; None: all before it.

  The classes for Mistral and Mixtral in transformers read sliding_window alone: layer_types and use_sliding_window
  belong to other types.
  """
  window, layers = fields.values["sliding_window"], fields.values["layer_types"]
  if layers is not None and (not isinstance(layers, list) or any(kind not in FULL + WINDOWED for kind in layers)):
    raise fields.invalid("layer_types", f"a list of {FULL[0]} and {WINDOWED[0]}")
  windowed = not layers or any(kind in WINDOWED for kind in layers)
  require(
    window is not None or not layers or not windowed,
    "import: config.json: layer_types has layers with a window, and sliding_window is missing",
  )
  used = fields.values["use_sliding_window"] is None or fields.flag("use_sliding_window")
  always = fields.given.get("model_type") in ("mistral", "mixtral")
  return fields.whole("sliding_window") if window is not None and (always or (windowed and used)) else None


def written(config: Config) -> JsonObject:
  """The entries of their config.json about the wavelengths of our model."""
  model = config.model
  base = {"rope_theta": model.rotary_base}
  if model.rotary_factor == 1:
    return base
  if not model.rotary_context:
    return base | {"rope_scaling": {"rope_type": "linear", "factor": model.rotary_factor}}
  scaling = {
    "rope_type": "llama3",
    "factor": model.rotary_factor,
    "low_freq_factor": model.rotary_low,
    "high_freq_factor": model.rotary_high,
    ORIGINAL: model.rotary_context,
  }
  return base | {"rope_scaling": scaling}
