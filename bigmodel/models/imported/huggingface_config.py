"""Converts the config.json of Hugging Face's models to fields of `config.model` and back."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from bigmodel.config import Config, nearest
from bigmodel.declarations import Value
from bigmodel.errors import UserError
from bigmodel.files import JsonObject

KINDS = ("gpt2", "bert", "vit", "llama", "mistral", "mixtral")
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu", "silu": "swiglu"}

# Our fields and their names for them, where the values are the same.
ENCODER = {
  "width": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "feed_forward": "intermediate_size",
  "epsilon": "layer_norm_eps",
}
SAME = {
  "gpt2": {
    "vocab": "vocab_size",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "epsilon": "layer_norm_epsilon",
  },
  "llama": ENCODER | {"vocab": "vocab_size", "epsilon": "rms_norm_eps"},
  "bert": ENCODER | {"vocab": "vocab_size", "positions": "max_position_embeddings", "types": "type_vocab_size"},
  "vit": ENCODER | {"patch": "patch_size"},
}
EXPERTS = {"experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
# Fields that `fields_of` leaves at their default values.
DEFAULTS = {"norm_first": True, "qk_norm": False, "tie_embeddings": True, "experts": 0, "rotary_base": 10_000.0}


class Imported(NamedTuple):
  family: str
  fields: dict[str, Value]  # of `config.model`
  context: int


def require_kind(kind: str) -> None:
  """Raises `UserError` for a model type that cannot be converted."""
  if kind not in KINDS:
    raise UserError(f"import: no models of type {kind!r}{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")


def fields_of(theirs: JsonObject, tensors: Collection[str] = ()) -> Imported:
  """Returns the family, fields and context of their config.json; `tensors` are the names of its tensors.

  Raises `KeyError` for missing entries, and `UserError` for models that bigmodel does not support.
  """
  kind = theirs.get("model_type", "")
  require_kind(kind)
  if kind == "gpt2":
    return _gpt2(theirs)
  if kind == "bert":
    return _bert(theirs, tensors)
  return _vit(theirs) if kind == "vit" else _llama(theirs, with_experts=kind == "mixtral")


def _same(theirs: JsonObject, names: Mapping[str, str]) -> dict[str, Value]:
  return {ours: theirs[name] for ours, name in names.items()}


def _gpt2(theirs: JsonObject) -> Imported:
  width, heads = theirs["n_embd"], theirs["n_head"]
  fields = _same(theirs, SAME["gpt2"]) | {
    "kv_heads": heads,
    "head_size": width // heads,
    "feed_forward": theirs.get("n_inner") or 4 * width,
    "activation": _activation(theirs["activation_function"]),
    "norm": "layer",
    "bias": True,
    "positions": "learned",
    "tie_embeddings": bool(theirs.get("tie_word_embeddings", True)),
  }
  return Imported("decoder", fields, theirs["n_positions"])


def _llama(theirs: JsonObject, with_experts: bool) -> Imported:
  heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
  scaling = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
  kind_of_scaling = scaling.get("rope_type") or scaling.get("type") or "default"
  if kind_of_scaling != "default":
    raise UserError(f"import: scaled rotary positions ({kind_of_scaling}) are not supported")
  if (theirs.get("sliding_window") or theirs["max_position_embeddings"]) < theirs["max_position_embeddings"]:
    raise UserError(f"import: attention within a window ({theirs['sliding_window']} tokens) is not supported")
  if theirs.get("attention_bias") or theirs.get("mlp_bias"):
    raise UserError("import: biases in a Llama are not supported")
  fields = _same(theirs, SAME["llama"] | (EXPERTS if with_experts else {})) | {
    "norm": "rms",
    "bias": False,
    "positions": "rotary",
    "kv_heads": theirs.get("num_key_value_heads") or heads,
    "head_size": theirs.get("head_dim") or width // heads,
    "activation": _activation(theirs["hidden_act"]),
    "rotary_base": float(theirs.get("rope_theta") or scaling.get("rope_theta") or 10_000.0),
    "tie_embeddings": bool(theirs.get("tie_word_embeddings", False)),
  }
  if with_experts:
    fields["expert_capacity"] = 0.0
  return Imported("decoder", fields, theirs["max_position_embeddings"])


def _bert(theirs: JsonObject, tensors: Collection[str]) -> Imported:
  head = "none"
  for part, name in (("cls.predictions", "masked_lm"), ("pooler.", "pooler")):
    if head == "none" and any(part in tensor for tensor in tensors):
      head = name
  fields = _same(theirs, SAME["bert"]) | _of_encoder(theirs) | {"head": head}
  return Imported("bert", fields, theirs["max_position_embeddings"])


def _vit(theirs: JsonObject) -> Imported:
  side = theirs["image_size"]
  fields = _same(theirs, SAME["vit"]) | _of_encoder(theirs)
  fields |= {
    "inputs": (side, side, theirs["num_channels"]),
    "outputs": len(theirs.get("id2label") or ()) or theirs.get("num_labels", 2),
  }
  return Imported("vit", fields, 1)


def _of_encoder(theirs: JsonObject) -> dict[str, Value]:
  head_size = theirs["hidden_size"] // theirs["num_attention_heads"]
  return {"head_size": head_size, "activation": _activation(theirs["hidden_act"])}


def _activation(theirs: str) -> str:
  if theirs not in ACTIVATIONS:
    raise UserError(f"import: no activation {theirs!r}; known: {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[theirs]


def config_of(kind: str, config: Config) -> JsonObject:
  """Converts our config to their config.json; raises `UserError` if the type does not support the model."""
  model = config.model
  family = {"bert": "bert", "vit": "vit"}.get(kind, "decoder")
  if model.family != family:
    raise UserError(f"export: a {kind} needs the family {family}, not {model.family}")
  require_kind(kind)
  same = SAME["llama" if kind in ("mistral", "mixtral") else kind] | (EXPERTS if kind == "mixtral" else {})
  activation = {ours: name for name, ours in reversed(ACTIVATIONS.items())}.get(model.activation)
  theirs = {"model_type": kind, **{name: model[ours] for ours, name in same.items()}, **_others(kind, config)}
  theirs["activation_function" if kind == "gpt2" else "hidden_act"] = activation
  tensors = ("cls.predictions",) if model.get("head") == "masked_lm" else ("pooler.",)
  back = fields_of(theirs, tensors).fields
  for name, value in back.items():
    ours = model[name]
    if name != "expert_capacity" and ours != value and not (name == "head" and ours == "none"):
      raise UserError(f"export: a {kind} cannot have config.model.{name} = {ours!r}; only {value!r}")
  for name, default in DEFAULTS.items():
    if name in model and name not in back and model[name] != default:
      raise UserError(f"export: a {kind} cannot have config.model.{name} = {model[name]!r}; only {default!r}")
  return theirs


def _others(kind: str, config: Config) -> JsonObject:
  """Returns the entries of their config.json that do not equal one of our fields."""
  model, context = config.model, config.data.context if config.data.kind == "text" else 0
  if kind == "gpt2":
    return {
      "n_inner": model.feed_forward,
      "n_positions": context,
      "tie_word_embeddings": model.tie_embeddings,
      "architectures": ["GPT2LMHeadModel"],
    }
  if kind == "bert":
    return {"architectures": ["BertForMaskedLM" if model.head == "masked_lm" else "BertModel"]}
  if kind == "vit":
    return {
      "image_size": model.inputs[0],
      "num_channels": model.inputs[2],
      "id2label": {str(i): f"class {i}" for i in range(model.outputs)},
      "architectures": ["ViTForImageClassification"],
    }
  return {
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_size,
    "rope_theta": model.rotary_base,
    "tie_word_embeddings": model.tie_embeddings,
    "max_position_embeddings": context,
    "architectures": [f"{kind.capitalize()}ForCausalLM"],
  }
