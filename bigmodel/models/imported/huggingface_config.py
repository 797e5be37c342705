"""Converts the config.json of Hugging Face's models to fields of `config.model` and back."""

import dataclasses
from collections.abc import Collection, Mapping

from bigmodel.config import require
from bigmodel.declarations import Value
from bigmodel.models.imported import huggingface_rotary
from bigmodel.models.imported.huggingface_fields import LARGEST, Fields

# Their activations and ours. The first of several names for one of ours is written.
PLAIN = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_python_tanh": "gelu",
  "gelu_fast": "gelu",
  "gelu_accurate": "gelu",
  "gelu": "gelu_erf",
  "gelu_python": "gelu_erf",
  "relu": "relu",
  "relu2": "relu2",
  "sigmoid": "sigmoid",
  "tanh": "tanh",
}
GATED = {"silu": "swiglu", "swish": "swiglu", "relu": "reglu"}
ACTIVATIONS = {"gpt2": PLAIN, "bert": PLAIN, "vit": PLAIN, "llama": GATED, "mistral": GATED, "mixtral": GATED}

# Our fields and their names for them, where the values are the same.
ENCODER = {
  "width": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "feed_forward": "intermediate_size",
}
SIZES = {
  "gpt2": {"vocab": "vocab_size", "width": "n_embd", "layers": "n_layer", "heads": "n_head"},
  "llama": ENCODER | {"vocab": "vocab_size"},
  "bert": ENCODER | {"vocab": "vocab_size", "positions": "max_position_embeddings", "types": "type_vocab_size"},
  "vit": ENCODER | {"patch": "patch_size"},
}
EPSILONS = {"gpt2": "layer_norm_epsilon", "llama": "rms_norm_eps", "bert": "layer_norm_eps", "vit": "layer_norm_eps"}
EXPERTS = {"experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}


@dataclasses.dataclass(frozen=True)
class Imported:
  """What a config.json says in our terms."""

  family: str
  fields: Mapping[str, Value]  # of `config.model`
  context: int
  limit: int | None = None  # the longest context that we compute as they do; None: any
  query_scale: float = 1.0  # multiplies the queries of all layers
  over_layer: bool = False  # whether the queries of layer i, counted from 0, are also divided by i + 1
  notes: tuple[str, ...] = ()


def fields_of(theirs: Mapping[str, object], tensors: Collection[str] = ()) -> Imported:
  """Returns the family, fields and context of their config.json; `tensors` are the names of its tensors.

  Raises `UserError` for missing and unknown fields, and for models that bigmodel does not support.
  """
  fields, kind = Fields.of(theirs), theirs["model_type"]
  if kind == "gpt2":
    return _gpt2(fields)
  if kind == "bert":
    return _bert(fields, tensors)
  return _vit(fields, theirs) if kind == "vit" else _llama(fields, str(kind))


def _same(fields: Fields, kind: str) -> dict[str, Value]:
  """Returns the sizes that are the same in both."""
  return {ours: fields.whole(name) for ours, name in SIZES[kind].items()}


def _head_size(fields: Fields, width: str, heads: str) -> int:
  total, count = fields.whole(width), fields.whole(heads)
  require(total % count == 0, f"import: config.json: {heads} = {count} does not divide {width} = {total}")
  return total // count


def _gpt2(fields: Fields) -> Imported:
  sizes, head_size = _same(fields, "gpt2"), _head_size(fields, "n_embd", "n_head")
  scale = 1.0 if fields.flag("scale_attn_weights") else head_size**0.5
  over_layer = fields.flag("scale_attn_by_inverse_layer_idx")
  scaled = over_layer or scale != 1
  notes = ("the scale of attention scores is applied to the weights of the queries",) if scaled else ()
  others: dict[str, Value] = {
    "epsilon": fields.number("layer_norm_epsilon"),
    "kv_heads": sizes["heads"],
    "head_size": head_size,
    "feed_forward": fields.optional("n_inner", 4 * fields.whole("n_embd")),
    "norm": "layer",
    "bias": True,
    "positions": "learned",
    "tie_embeddings": fields.flag("tie_word_embeddings"),
    "activation": fields.choice("activation_function", PLAIN),
  }
  context = fields.whole("n_positions")
  return Imported("decoder", sizes | others, context, context, scale, over_layer, notes)


def _llama(fields: Fields, kind: str) -> Imported:
  sizes = _same(fields, "llama")
  heads, given = fields.whole("num_attention_heads"), fields.values["head_dim"]
  head_size = _head_size(fields, "hidden_size", "num_attention_heads") if given is None else fields.whole("head_dim")
  kv_heads = fields.optional("num_key_value_heads", heads)
  require(
    heads % kv_heads == 0,
    f"import: config.json: num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}",
  )
  require(
    heads * head_size <= LARGEST, f"import: config.json: {heads} heads of size {head_size} are more than {LARGEST} wide"
  )
  require(head_size % 2 == 0, f"import: config.json: heads of the odd size {head_size} cannot have rotary positions")
  rotary = huggingface_rotary.read(fields)
  others: dict[str, Value] = {
    "epsilon": fields.number("rms_norm_eps"),
    "norm": "rms",
    "bias": False,
    "positions": "rotary",
    "kv_heads": kv_heads,
    "head_size": head_size,
    **rotary.fields,
    "tie_embeddings": fields.flag("tie_word_embeddings"),
    "activation": fields.choice("hidden_act", GATED),
  }
  if kind == "mixtral":
    others |= {ours: fields.whole(name) for ours, name in EXPERTS.items()} | {"expert_capacity": 0.0}
    require(fields.whole("num_local_experts") > 1, "import: config.json: num_local_experts = 1 is less than 2")
  return Imported("decoder", sizes | others, rotary.context, rotary.limit, notes=rotary.notes)


def _bert(fields: Fields, tensors: Collection[str]) -> Imported:
  head = "none"
  for part, name in (("cls.predictions", "masked_lm"), ("pooler.", "pooler")):
    if head == "none" and any(part in tensor for tensor in tensors):
      head = name
  context = fields.whole("max_position_embeddings")
  return Imported("bert", _same(fields, "bert") | _of_encoder(fields) | {"head": head}, context, context)


def _vit(fields: Fields, theirs: Mapping[str, object]) -> Imported:
  sides = fields.values["image_size"]
  height, width = sides if isinstance(sides, list) and len(sides) == 2 else (sides, sides)
  inputs = *(Fields({"image_size": side}).whole("image_size") for side in (height, width)), fields.whole("num_channels")
  labels = theirs.get("id2label")
  if isinstance(labels, dict | list) and labels:
    outputs = len(labels)
  else:
    outputs = Fields({"num_labels": theirs.get("num_labels", 2)}).whole("num_labels")
  of_images: dict[str, Value] = {"inputs": inputs, "outputs": outputs}
  return Imported("vit", _same(fields, "vit") | _of_encoder(fields) | of_images, 1)


def _of_encoder(fields: Fields) -> dict[str, Value]:
  return {
    "epsilon": fields.number("layer_norm_eps"),
    "head_size": _head_size(fields, "hidden_size", "num_attention_heads"),
    "activation": fields.choice("hidden_act", PLAIN),
  }
