"""Converts weights of Hugging Face's GPT-2, BERT, Llama, Mistral, Mixtral and ViT to parameters of bigmodel and back.

"Ours" are names and arrays of bigmodel, "theirs" those of Hugging Face. Each family has a table of (our parameters,
their tensor, form). In the name of a tensor, `{i}` is a layer and `{e}` an expert; our arrays are stacked over both.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from bigmodel.config import Config, nearest
from bigmodel.errors import UserError
from bigmodel.models.imported.huggingface_config import Imported
from bigmodel.models.imported.huggingface_config import fields_of as fields_of
from bigmodel.models.imported.huggingface_export import config_of as config_of
from bigmodel.models.imported.huggingface_fields import require_kind
from bigmodel.readers.safetensors import Tensor

Shapes = Mapping[str, tuple[int, ...]]
# Tensors in their files that are not parameters or are duplicates.
IGNORED = re.compile(
  r"(^|\.)(attn\.bias|attn\.masked_bias|position_ids|inv_freq|seq_relationship\.\w+|predictions\.decoder\.\w+)$"
)
PREFIXES = {"gpt2": ("transformer.",), "bert": ("bert.",), "vit": ("vit.",), "llama": (), "mistral": (), "mixtral": ()}


@dataclasses.dataclass(frozen=True)
class Row:
  """One or several of our parameters and the tensor that holds them.

  The `form` of the tensor is `same`; `linear`, a transposed matrix; `fused`, three of our arrays side by side; `row`,
  with additional axes of size 1; or `patch`, a convolution that we store as a matrix.
  """

  ours: tuple[str, ...]
  theirs: str
  form: str = "same"


def rows(kind: str, config: Config) -> list[Row]:
  """Returns the table of a family; our names have dots between the levels of the tree."""
  require_kind(kind)
  table = {"gpt2": _gpt2, "bert": _bert, "vit": _vit}
  return table.get(kind, _llama)(config)


def _pair(ours: str, theirs: str, form: str = "linear") -> list[Row]:
  """Returns the rows of a matrix and its bias."""
  return [Row((ours,), f"{theirs}.weight", form), Row((f"{ours}_bias",), f"{theirs}.bias")]


def _norm(ours: str, theirs: str) -> list[Row]:
  return [Row((f"{ours}.scale",), f"{theirs}.weight"), Row((f"{ours}.bias",), f"{theirs}.bias")]


def _queries_keys_values(prefix: str) -> list[Row]:
  """Returns the rows of three matrices and their biases, whose names differ only in the prefix."""
  names = ("query", "key", "value")
  return [row for name in names for row in _pair(f"blocks.attention.{name}", f"{prefix}.{name}")]


def _gpt2(config: Config) -> list[Row]:
  three = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
  return [
    Row(("embedding",), "wte.weight"),
    Row(("positions",), "wpe.weight"),
    Row(tuple(three), "h.{i}.attn.c_attn.weight", "fused"),
    Row(tuple(f"{name}_bias" for name in three), "h.{i}.attn.c_attn.bias", "fused"),
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
    *_queries_keys_values(f"{layer}.attention.self"),
    *_pair("blocks.attention.out", f"{layer}.attention.output.dense"),
    *_norm("blocks.attention_norm", f"{layer}.attention.output.LayerNorm"),
    *_pair("blocks.feed_forward.up", f"{layer}.intermediate.dense"),
    *_pair("blocks.feed_forward.down", f"{layer}.output.dense"),
    *_norm("blocks.feed_forward_norm", f"{layer}.output.LayerNorm"),
  ]
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
    *_queries_keys_values(f"{layer}.attention.attention"),
    *_pair("blocks.attention.out", f"{layer}.attention.output.dense"),
    *_norm("blocks.attention_norm", f"{layer}.layernorm_before"),
    *_pair("blocks.feed_forward.up", f"{layer}.intermediate.dense"),
    *_pair("blocks.feed_forward.down", f"{layer}.output.dense"),
    *_norm("blocks.feed_forward_norm", f"{layer}.layernorm_after"),
    *_norm("final_norm", "layernorm"),
    *_pair("output", "classifier"),
  ]


def _llama(config: Config) -> list[Row]:
  layer = "model.layers.{i}"
  table = [
    Row(("embedding",), "model.embed_tokens.weight"),
    *[
      Row((f"blocks.attention.{ours}",), f"{layer}.self_attn.{ours[0]}_proj.weight", "linear")
      for ours in ("query", "key", "value", "out")
    ],
    Row(("blocks.attention_norm.scale",), f"{layer}.input_layernorm.weight"),
    Row(("blocks.feed_forward_norm.scale",), f"{layer}.post_attention_layernorm.weight"),
    Row(("final_norm.scale",), "model.norm.weight"),
  ]
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
  """Yields every (layer, expert) of a row with the name of its tensor."""
  layers = range(config.model.layers) if "{i}" in row.theirs else (None,)
  experts = range(config.model.experts) if "{e}" in row.theirs else (None,)
  for i in layers:
    for e in experts:
      yield tuple(n for n in (i, e) if n is not None), row.theirs.format(i=i, e=e)


def to_ours(x: np.ndarray, form: str) -> list[np.ndarray]:
  """Converts their tensor to one or several of our arrays."""
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
  """Converts our arrays to their tensor: the inverse of `to_ours`."""
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


def params_of(tensors: Mapping[str, Tensor], kind: str, config: Config, shapes: Shapes) -> dict[str, np.ndarray]:
  """Returns our parameters by dotted name, each of the shape in `shapes`; raises for missing and unknown tensors."""
  plain, table = _plain(tensors, kind), rows(kind, config)
  _require_tensors(plain, table, kind, config)
  _require_shapes(plain, table, config, shapes)
  ours: dict[str, np.ndarray] = {}
  for row in table:
    for place, name in _places(row, config):
      for parameter, array in zip(row.ours, to_ours(plain[name].values(), row.form), strict=True):
        if parameter not in ours:
          ours[parameter] = np.empty(shapes[parameter], np.float32)
        ours[parameter][place] = array
  for copy, original in _copies(plain, kind, config):
    if not np.array_equal(plain[copy].values(), plain[original].values()):
      raise UserError(
        f"import: {copy!r} differs from {original!r}, and config.json ties them (tie_word_embeddings); set it to false"
        " there if the model was trained with two tables"
      )
  return ours


def _plain(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
  """The tensors by name without prefixes, and with the present names of norms."""
  plain: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    prefix = next((p for p in PREFIXES[kind] if name.startswith(p)), "")
    short = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
    short = short.replace("LayerNorm.beta", "LayerNorm.bias")
    if short in plain:
      raise UserError(f"import: tensors {plain[short].name!r} and {name!r} are both {short!r}")
    plain[short] = tensor
  return plain


def _copies(plain: Mapping[str, Tensor], kind: str, config: Config) -> list[tuple[str, str]]:
  """Pairs of tensors in the files of which a model with tied embeddings uses only the second."""
  embedding = rows(kind, config)[0].theirs
  pairs = [("cls.predictions.decoder.weight", embedding), ("cls.predictions.decoder.bias", "cls.predictions.bias")]
  if kind not in ("bert", "vit") and config.model.tie_embeddings:
    pairs = [("lm_head.weight", embedding)]
  return [pair for pair in pairs if pair[0] in plain and pair[1] in plain]


def _require_tensors(plain: dict[str, Tensor], table: list[Row], kind: str, config: Config) -> None:
  """Raises `UserError` for missing and unknown tensors. A tied table may only be there as `lm_head.weight`."""
  if kind not in ("bert", "vit") and config.model.tie_embeddings and "lm_head.weight" in plain:
    plain.setdefault(table[0].theirs, plain["lm_head.weight"])
  used = set()
  for row in table:
    for _, name in _places(row, config):
      if name not in plain:
        raise UserError(f"import: no tensor {name!r}{nearest(name, plain)}")
      used.add(name)
  used |= {copy for copy, _ in _copies(plain, kind, config)}
  dropped = re.compile(r"^pooler\.") if kind == "bert" and config.model.head == "masked_lm" else None
  for name in plain:
    if name not in used and not IGNORED.search(name) and not (dropped and dropped.match(name)):
      hint = _beyond(name, used) or _hint(name)
      raise UserError(f"import: unknown tensor {name!r} of shape {plain[name].shape}{hint}")


def _beyond(name: str, used: set[str]) -> str:
  """A remark, to end a message, on a tensor that lies in a layer or expert beyond those of config.json; else ""."""
  for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
    if f"{name[: number.start()]}0{name[number.end() :]}" in used:
      return "; it is left over, as config.json has fewer layers or experts than the weights"
  return ""


def _hint(name: str) -> str:
  """Why a tensor may be unknown, to end a message."""
  if name.endswith(".bias"):
    return "; this type has no biases there"
  if re.search(r"score|classifier|qa_outputs|v_head|value_head|reward", name):
    return "; it is a head that the model does not have here, so export the model without it"
  return ""


def _require_shapes(plain: Mapping[str, Tensor], table: list[Row], config: Config, shapes: Shapes) -> None:
  """Raises `UserError` unless each tensor has the shape that the config asks for, before any is read."""
  for row in table:
    unknown = [parameter for parameter in row.ours if parameter not in shapes]
    if unknown:
      raise UserError(f"import: {row.theirs!r} would be {unknown[0]!r}, which this config's model does not have")
    for place, name in _places(row, config):
      wanted = _their_shape(shapes[row.ours[0]][len(place) :], row.form, config)
      if plain[name].shape != wanted:
        raise UserError(f"import: tensor {name!r} has the shape {plain[name].shape}, not {wanted}")
  missing = set(shapes) - {parameter for row in table for parameter in row.ours}
  if missing:
    raise UserError(f"import: no tensor gives {sorted(missing)[0]!r} of this config's model")


def _their_shape(ours: tuple[int, ...], form: str, config: Config) -> tuple[int, ...]:
  """Returns the shape of the tensor that `to_theirs` makes of arrays of this shape."""
  if form == "linear":
    return ours[::-1]
  if form == "fused":
    return (*ours[:-1], 3 * ours[-1])
  if form == "row":
    return (*[1] * (3 - len(ours)), *ours)
  if form == "patch":
    return (ours[-1], config.model.inputs[2], config.model.patch, config.model.patch)
  return ours


def scale_queries(params: Mapping[str, np.ndarray], imported: Imported) -> None:
  """Multiplies the queries, in place, by the scale of attention scores that our model does not have."""
  for name in ("blocks.attention.query", "blocks.attention.query_bias"):
    if name not in params or (imported.query_scale == 1 and not imported.over_layer):
      continue
    for i, of_layer in enumerate(params[name]):
      of_layer *= imported.query_scale / (i + 1 if imported.over_layer else 1)


def tensors_of(params: Mapping[str, np.ndarray], kind: str, config: Config) -> dict[str, np.ndarray]:
  """Converts our parameters, by dotted name, to their tensors."""
  tensors = {}
  for row in rows(kind, config):
    for place, name in _places(row, config):
      arrays = [np.asarray(params[parameter])[place] for parameter in row.ours]
      tensors[name] = np.ascontiguousarray(to_theirs(arrays, row.form, config))
  return tensors
