"""Weights of Hugging Face's files: GPT-2, BERT, Llama, Mixtral and ViT, to our parameters and back.

Each family has a table of (our parameters, their tensor, form); `{i}` is a layer and `{e}` an
expert, over which ours are stacked.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bigmodel.config import Config, nearest
from bigmodel.errors import UserError

Tensors = Mapping[str, np.ndarray]
# What their files may hold beside parameters, or twice.
IGNORED = re.compile(
  r"(^|\.)(attn\.bias|attn\.masked_bias|position_ids|inv_freq|seq_relationship\.\w+|predictions\.decoder\.\w+)$"
)
PREFIXES = {"gpt2": ("transformer.",), "bert": ("bert.",), "vit": ("vit.",), "llama": (), "mistral": (), "mixtral": ()}
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu", "silu": "swiglu"}


@dataclasses.dataclass(frozen=True)
class Row:
  """`form`: same; linear, whose matrix is theirs transposed; fused, three of ours side by side; row, without axes of 1;
  patch, a convolution as a matrix."""

  ours: tuple[str, ...]
  theirs: str
  form: str = "same"


def rows(kind: str, config: Config) -> list[Row]:
  """The table of a family; our names have dots between the levels of the tree."""
  table = {"gpt2": _gpt2, "bert": _bert, "vit": _vit, "llama": _llama, "mistral": _llama, "mixtral": _llama}
  if kind not in table:
    raise UserError(f"import: no models of type {kind!r}{nearest(kind, table)}; known: {', '.join(table)}")
  return table[kind](config)


def _pair(ours: str, theirs: str, form: str = "linear") -> list[Row]:
  """A matrix and its bias."""
  return [Row((ours,), f"{theirs}.weight", form), Row((f"{ours}_bias",), f"{theirs}.bias")]


def _norm(ours: str, theirs: str) -> list[Row]:
  return [Row((f"{ours}.scale",), f"{theirs}.weight"), Row((f"{ours}.bias",), f"{theirs}.bias")]


def _gpt2(config: Config) -> list[Row]:
  three = lambda end: tuple(f"blocks.attention.{name}{end}" for name in ("query", "key", "value"))
  return [
    Row(("embedding",), "wte.weight"),
    Row(("positions",), "wpe.weight"),
    Row(three(""), "h.{i}.attn.c_attn.weight", "fused"),
    Row(three("_bias"), "h.{i}.attn.c_attn.bias", "fused"),
    *_pair("blocks.attention.out", "h.{i}.attn.c_proj", "same"),
    *_pair("blocks.feed_forward.up", "h.{i}.mlp.c_fc", "same"),
    *_pair("blocks.feed_forward.down", "h.{i}.mlp.c_proj", "same"),
    *_norm("blocks.attention_norm", "h.{i}.ln_1"),
    *_norm("blocks.feed_forward_norm", "h.{i}.ln_2"),
    *_norm("final_norm", "ln_f"),
    *([] if config.model.tie_embeddings else [Row(("output",), "lm_head.weight")]),
  ]


def _bert(config: Config) -> list[Row]:
  layer = "encoder.layer.{i}"
  table = [
    Row(("embedding",), "embeddings.word_embeddings.weight"),
    Row(("positions",), "embeddings.position_embeddings.weight"),
    Row(("types",), "embeddings.token_type_embeddings.weight"),
    *_norm("embedding_norm", "embeddings.LayerNorm"),
    *[row for name in ("query", "key", "value")
      for row in _pair(f"blocks.attention.{name}", f"{layer}.attention.self.{name}")],
    *_pair("blocks.attention.out", f"{layer}.attention.output.dense"),
    *_norm("blocks.attention_norm", f"{layer}.attention.output.LayerNorm"),
    *_pair("blocks.feed_forward.up", f"{layer}.intermediate.dense"),
    *_pair("blocks.feed_forward.down", f"{layer}.output.dense"),
    *_norm("blocks.feed_forward_norm", f"{layer}.output.LayerNorm"),
  ]  # fmt: skip
  if config.model.head == "pooler":
    table += _pair("pooler", "pooler.dense")
  if config.model.head == "masked_lm":
    table += _pair("transform", "cls.predictions.transform.dense")
    table += _norm("transform_norm", "cls.predictions.transform.LayerNorm")
    table.append(Row(("output_bias",), "cls.predictions.bias"))
  return table


def _vit(config: Config) -> list[Row]:
  del config
  layer = "encoder.layer.{i}"
  return [
    Row(("token",), "embeddings.cls_token", "row"),
    Row(("positions",), "embeddings.position_embeddings", "row"),
    *_pair("patches", "embeddings.patch_embeddings.projection", "patch"),
    *[row for name in ("query", "key", "value")
      for row in _pair(f"blocks.attention.{name}", f"{layer}.attention.attention.{name}")],
    *_pair("blocks.attention.out", f"{layer}.attention.output.dense"),
    *_norm("blocks.attention_norm", f"{layer}.layernorm_before"),
    *_pair("blocks.feed_forward.up", f"{layer}.intermediate.dense"),
    *_pair("blocks.feed_forward.down", f"{layer}.output.dense"),
    *_norm("blocks.feed_forward_norm", f"{layer}.layernorm_after"),
    *_norm("final_norm", "layernorm"),
    *_pair("output", "classifier"),
  ]  # fmt: skip


def _llama(config: Config) -> list[Row]:
  layer = "model.layers.{i}"
  table = [
    Row(("embedding",), "model.embed_tokens.weight"),
    *[Row((f"blocks.attention.{ours}",), f"{layer}.self_attn.{theirs}_proj.weight", "linear")
      for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))],
    Row(("blocks.attention_norm.scale",), f"{layer}.input_layernorm.weight"),
    Row(("blocks.feed_forward_norm.scale",), f"{layer}.post_attention_layernorm.weight"),
    Row(("final_norm.scale",), "model.norm.weight"),
  ]  # fmt: skip
  if not config.model.tie_embeddings:
    table.append(Row(("output",), "lm_head.weight"))
  if config.model.experts:
    moe = f"{layer}.block_sparse_moe"
    table.append(Row(("blocks.experts.router",), f"{moe}.gate.weight", "linear"))
    names = (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    table += [
      Row((f"blocks.experts.{ours}",), f"{moe}.experts.{{e}}.{theirs}.weight", "linear") for ours, theirs in names
    ]
  else:
    table += [
      Row((f"blocks.feed_forward.{name}",), f"{layer}.mlp.{name}_proj.weight", "linear")
      for name in ("gate", "up", "down")
    ]
  return table


def _places(row: Row, config: Config) -> Iterator[tuple[tuple[int, ...], str]]:
  """Every (layer, expert) of a row with the name of its tensor."""
  layers = range(config.model.layers) if "{i}" in row.theirs else (None,)
  experts = range(config.model.experts) if "{e}" in row.theirs else (None,)
  for i in layers:
    for e in experts:
      yield tuple(n for n in (i, e) if n is not None), row.theirs.format(i=i, e=e)


def to_ours(x: np.ndarray, form: str) -> list[np.ndarray]:
  """Their tensor as one or several of our arrays."""
  if form == "linear":
    return [x.T]
  if form == "fused":
    return np.split(x, 3, axis=-1)
  if form == "row":
    return [x.reshape([n for i, n in enumerate(x.shape) if n > 1 or i == x.ndim - 1])]
  if form == "patch":
    return [x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])]  # [D, channels, P, P]
  return [x]


def to_theirs(ours: list[np.ndarray], form: str, config: Config) -> np.ndarray:
  """The inverse of `to_ours`."""
  x = ours[0]
  if form == "linear":
    return x.T
  if form == "fused":
    return np.concatenate(ours, axis=-1)
  if form == "row":
    return x.reshape(*[1] * (3 - x.ndim), *x.shape)
  if form == "patch":
    P, channels = config.model.patch, config.model.inputs[2]
    return x.reshape(P, P, channels, -1).transpose(3, 2, 0, 1)
  return x


def params_of(tensors: Tensors, kind: str, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Our parameters by dotted name, each of the shape in `shapes`; refuses missing and unknown tensors by name."""
  prefixes = PREFIXES.get(kind, ())
  plain = {}
  for name, tensor in tensors.items():
    prefix = next((p for p in prefixes if name.startswith(p)), "")
    name = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
    plain[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
  ours: dict[str, Any] = {}
  used = set()
  for row in rows(kind, config):
    for place, name in _places(row, config):
      if name not in plain:
        raise UserError(f"import: no tensor {name!r}{nearest(name, plain)}")
      used.add(name)
      for own, array in zip(row.ours, to_ours(np.asarray(plain[name], np.float32), row.form), strict=True):
        if own not in shapes:
          raise UserError(f"import: {name!r} would be {own!r}, which the model of this config does not have")
        whole = ours.setdefault(own, np.empty(shapes[own], np.float32))
        if whole[place].shape != array.shape:
          raise UserError(f"import: tensor {name!r} has the shape {array.shape}, not {whole[place].shape}")
        whole[place] = array
  known_twice = {"lm_head.weight"} if "lm_head.weight" not in used else set()
  dropped = re.compile(r"^pooler\.") if kind == "bert" and config.model.head == "masked_lm" else None
  for name in plain:
    if name not in used | known_twice and not IGNORED.search(name) and not (dropped and dropped.match(name)):
      raise UserError(f"import: unknown tensor {name!r}")
  missing = set(shapes) - set(ours)
  if missing:
    raise UserError(f"import: nothing gives {sorted(missing)[0]!r} of the model of this config")
  return ours


def tensors_of(params: Mapping[str, np.ndarray], kind: str, config: Config) -> dict[str, np.ndarray]:
  """Their tensors of our parameters by dotted name."""
  tensors = {}
  for row in rows(kind, config):
    for place, name in _places(row, config):
      own = [np.asarray(params[one])[place] for one in row.ours]
      tensors[name] = np.ascontiguousarray(to_theirs(own, row.form, config))
  return tensors


def fields_of(theirs: Mapping[str, Any], names: Any = ()) -> tuple[str, dict[str, Any], int]:
  """`(family, fields of config.model, context)` of their config.json; `names` are those of the tensors."""
  kind = theirs.get("model_type", "")
  if kind == "gpt2":
    width = theirs["n_embd"]
    return "decoder", {
      "vocab": theirs["vocab_size"], "width": width, "layers": theirs["n_layer"], "heads": theirs["n_head"],
      "kv_heads": theirs["n_head"], "head_size": width // theirs["n_head"],
      "feed_forward": theirs.get("n_inner") or 4 * width, "activation": _activation(theirs["activation_function"]),
      "norm": "layer", "bias": True, "positions": "learned", "epsilon": theirs["layer_norm_epsilon"],
      "tie_embeddings": bool(theirs.get("tie_word_embeddings", True)),
    }, theirs["n_positions"]  # fmt: skip
  if kind in ("llama", "mistral", "mixtral"):
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    scaling = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    kind_of_scaling = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind_of_scaling != "default":
      raise UserError(f"import: rotary positions are scaled ({kind_of_scaling}), which is not known here")
    if (theirs.get("sliding_window") or theirs["max_position_embeddings"]) < theirs["max_position_embeddings"]:
      raise UserError(f"import: attention within a window of {theirs['sliding_window']} is not known here")
    if theirs.get("attention_bias") or theirs.get("mlp_bias"):
      raise UserError("import: a Llama with biases is not known here")
    fields = {
      "norm": "rms", "bias": False, "positions": "rotary",
      "vocab": theirs["vocab_size"], "width": width, "layers": theirs["num_hidden_layers"], "heads": heads,
      "kv_heads": theirs.get("num_key_value_heads") or heads, "head_size": theirs.get("head_dim") or width // heads,
      "feed_forward": theirs["intermediate_size"], "activation": _activation(theirs["hidden_act"]),
      "epsilon": theirs["rms_norm_eps"],
      "rotary_base": float(theirs.get("rope_theta") or scaling.get("rope_theta") or 10_000.0),
      "tie_embeddings": bool(theirs.get("tie_word_embeddings", False)),
    }  # fmt: skip
    if kind == "mixtral":
      fields |= {"experts": theirs["num_local_experts"], "experts_per_token": theirs["num_experts_per_tok"]}
      fields["expert_capacity"] = 0.0
    return "decoder", fields, theirs["max_position_embeddings"]
  if kind == "bert":
    head = "masked_lm" if any("cls.predictions" in name for name in names) else "none"
    if head == "none" and any("pooler." in name for name in names):
      head = "pooler"
    return "bert", _encoder(theirs) | {
      "vocab": theirs["vocab_size"], "positions": theirs["max_position_embeddings"],
      "types": theirs["type_vocab_size"], "head": head,
    }, theirs["max_position_embeddings"]  # fmt: skip
  if kind == "vit":
    side = theirs["image_size"]
    return "vit", _encoder(theirs) | {
      "patch": theirs["patch_size"], "inputs": (side, side, theirs["num_channels"]),
      "outputs": len(theirs.get("id2label") or ()) or theirs.get("num_labels", 2),
    }, 1  # fmt: skip
  known = ("gpt2", "bert", "llama", "mistral", "mixtral", "vit")
  raise UserError(f"import: no models of type {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")


def config_of(kind: str, config: Config) -> dict[str, Any]:
  """Their config.json of our config; refuses a model that the type cannot be."""
  model = config.model
  family = {"bert": "bert", "vit": "vit"}.get(kind, "decoder")
  if model.family != family:
    raise UserError(f"export: a {kind} is a {family} here, not a {model.family}")
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  common = {
    "hidden_size": model.width, "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
    "intermediate_size": model.feed_forward, "hidden_act": names.get(model.activation), "model_type": kind,
  }  # fmt: skip
  if kind == "gpt2":
    theirs = {
      "model_type": kind, "vocab_size": model.vocab, "n_embd": model.width, "n_layer": model.layers,
      "n_head": model.heads, "n_inner": model.feed_forward, "n_positions": config.data.context,
      "activation_function": names.get(model.activation), "layer_norm_epsilon": model.epsilon,
      "tie_word_embeddings": model.tie_embeddings, "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip
  elif kind in ("llama", "mistral", "mixtral"):
    theirs = common | {
      "vocab_size": model.vocab, "num_key_value_heads": model.kv_heads, "head_dim": model.head_size,
      "rms_norm_eps": model.epsilon, "rope_theta": model.rotary_base, "tie_word_embeddings": model.tie_embeddings,
      "max_position_embeddings": config.data.context, "architectures": [f"{kind.capitalize()}ForCausalLM"],
    }  # fmt: skip
    if kind == "mixtral":
      theirs |= {"num_local_experts": model.experts, "num_experts_per_tok": model.experts_per_token}
  elif kind == "bert":
    theirs = common | {
      "vocab_size": model.vocab, "max_position_embeddings": model.positions, "type_vocab_size": model.types,
      "layer_norm_eps": model.epsilon,
      "architectures": ["BertForMaskedLM" if model.head == "masked_lm" else "BertModel"],
    }  # fmt: skip
  else:
    rows(kind, config)  # refuses an unknown type
    theirs = common | {
      "patch_size": model.patch, "image_size": model.inputs[0], "num_channels": model.inputs[2],
      "id2label": {str(i): f"class {i}" for i in range(model.outputs)}, "layer_norm_eps": model.epsilon,
      "architectures": ["ViTForImageClassification"],
    }  # fmt: skip
  names_there = ("cls.predictions",) if model.get("head") == "masked_lm" else ("pooler.",)
  _, back, _ = fields_of(theirs, names_there)
  for name, value in back.items():
    ours = model[name]
    if name != "expert_capacity" and ours != value and not (name == "head" and ours == "none"):
      raise UserError(f"export: a {kind} has no config.model.{name} = {ours!r}; it would be {value!r}")
  for name, plain in PLAIN.items():
    if name in model and name not in back and model[name] != plain:
      raise UserError(f"export: a {kind} has no config.model.{name} = {model[name]!r}; it would be {plain!r}")
  return theirs


# Fields that `fields_of` leaves as they are by default.
PLAIN = {"norm_first": True, "qk_norm": False, "tie_embeddings": True, "experts": 0, "rotary_base": 10_000.0}


def _encoder(theirs: Mapping[str, Any]) -> dict[str, Any]:
  heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
  return {
    "width": width, "layers": theirs["num_hidden_layers"], "heads": heads, "head_size": width // heads,
    "feed_forward": theirs["intermediate_size"], "activation": _activation(theirs["hidden_act"]),
    "epsilon": theirs["layer_norm_eps"],
  }  # fmt: skip


def _activation(theirs: str) -> str:
  if theirs not in ACTIVATIONS:
    raise UserError(f"import: no activation {theirs!r}; known: {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[theirs]
