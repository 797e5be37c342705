"""Models: one file a family over shared layers; each says its own parameters and FLOPs."""

from typing import Any

from bigmodel.config import Config, require, require_choice

FAMILIES = ("decoder",)
ACTIVATIONS = ("swiglu", "gelu", "relu2")


def fields() -> dict[str, Any]:
  """The fields of `config.model`, with defaults. Zero means: derived, see `resolve`."""
  return {
    "family": "decoder",
    "vocab": 0,  # 0: the tokenizer's
    "width": 64,
    "layers": 4,
    "heads": 0,  # 0: width // head_size
    "kv_heads": 0,  # 0: heads
    "head_size": 32,
    "feed_forward": 0,  # 0: 4 * width, or 8/3 * width rounded up to a multiple of 8 for swiglu
    "activation": "swiglu",
    "qk_norm": False,
    "tie_embeddings": True,
    "experts": 0,  # feed-forward blocks a layer, of which each token meets some; 0: one, met by all
    "experts_per_token": 2,
    "expert_group": 0,  # tokens of a row that are routed together; 0: the row
    "expert_capacity": 1.25,  # slots of an expert, as a multiple of its even share of a group
  }


def resolve(model: Config, vocab: int) -> None:
  """Replaces the zeros of `config.model` by what they stand for, in place."""
  model.vocab = model.vocab or vocab
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.kv_heads = model.kv_heads or model.heads
  if not model.feed_forward:
    model.feed_forward = -(-8 * model.width // 24) * 8 if model.activation == "swiglu" else 4 * model.width


def check(config: Config) -> None:
  """Refuses a `config.model` that cannot be built."""
  model = config.model
  require_choice("model.family", model.family, FAMILIES)
  require_choice("model.activation", model.activation, ACTIVATIONS)
  for name in ("width", "layers", "head_size"):
    require(model[name] > 0, f"config.model.{name}: {model[name]} is not positive")
  for name in ("vocab", "heads", "kv_heads", "feed_forward"):
    require(model[name] >= 0, f"config.model.{name}: {model[name]} is negative")
  require(model.head_size % 2 == 0, f"config.model.head_size: {model.head_size} is odd; rotary positions need pairs")
  if model.experts:
    require(model.experts > 1, f"config.model.experts: {model.experts} is neither 0 nor at least 2")
    chosen, group = model.experts_per_token, model.expert_group
    require(
      1 <= chosen <= model.experts,
      f"config.model.experts_per_token: {chosen} is not between 1 and experts = {model.experts}",
    )
    require(
      group >= 0 and config.data.context % (group or 1) == 0,
      f"config.model.expert_group: {group} does not divide data.context = {config.data.context}",
    )
    require(model.expert_capacity > 0, f"config.model.expert_capacity: {model.expert_capacity} is not positive")
  heads = model.heads or max(1, model.width // model.head_size)
  groups = model.kv_heads or heads
  require(heads % groups == 0, f"config.model.kv_heads: {groups} does not divide heads = {heads}")


def shape_of(model: Config):
  """The frozen shape of a resolved `config.model`."""
  from bigmodel.models.decoder import Shape

  names = [field for field in Shape.__dataclass_fields__]
  return Shape(**{name: model[name] for name in names})


def build(model: Config, dtype: Any, **arguments: Any):
  """The Linen module of a resolved `config.model`."""
  from bigmodel.models.decoder import Decoder

  return Decoder(shape_of(model), dtype, **arguments)
