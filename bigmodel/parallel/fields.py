"""The fields of `config.parallel`, which set how a run is computed, and never its results."""

import dataclasses

from bigmodel.declarations import NOT_NEGATIVE, PROVENANCE, OneOf, Range, field

# The preferred sizes of a preset: -1 takes the remaining devices, others shrink until they divide the devices.
PRESETS: dict[str, dict[str, int]] = {
  "dp": {"data": -1},
  "fsdp": {"fsdp": -1},
  "fsdp_tp": {"fsdp": -1, "tensor": 2},
  "fsdp_tp_sp": {"fsdp": -1, "tensor": 2, "sequence": 2},
  "ep": {"fsdp": -1, "expert": 4},
  "pp": {"fsdp": -1, "pipeline": 2},
}
ATTENTION = ("auto", "plain", "blockwise", "cudnn", "splash")
SEQUENCE_ATTENTION = ("ring", "gather")
REMAT = ("none", "dots", "full", "offload")
OFFLOAD = ("none", "optimizer")
SIZE = Range(-1)


@dataclasses.dataclass(frozen=True)
class Parallel:
  """The size of an axis of the mesh is 0 for the size of the preset, or -1 for all remaining devices."""

  preset: str = field("dp", "default sizes and rules of the mesh", OneOf(PRESETS), PROVENANCE)
  data: int = field(0, "replicas of the model, each with different rows", SIZE, PROVENANCE)
  fsdp: int = field(0, "devices with different rows that shard one copy of the weights", SIZE, PROVENANCE)
  tensor: int = field(0, "devices that split heads and hidden units", SIZE, PROVENANCE)
  sequence: int = field(0, "devices that split the positions of a row", SIZE, PROVENANCE)
  expert: int = field(0, "devices that split the experts", SIZE, PROVENANCE)
  pipeline: int = field(0, "devices that split the layers", SIZE, PROVENANCE)
  rules: tuple[str, ...] = field(
    (), "'logical=axis' or 'logical=axis+axis' or 'logical=', before the built-in ones", None, PROVENANCE
  )
  attention: str = field("auto", "attention kernel", OneOf(ATTENTION), PROVENANCE)
  sequence_attention: str = field(
    "ring", "exchange of keys and values along `sequence`", OneOf(SEQUENCE_ATTENTION), PROVENANCE
  )
  # Layers with sharded weights (fsdp) always run as one loop, so that the gathered weights of all layers
  # are never in memory together.
  scan: bool = field(False, "run layers as one loop, compiled once", None, PROVENANCE)
  remat: str = field("none", "what the backward pass recomputes", OneOf(REMAT), PROVENANCE)
  microbatches: int = field(0, "microbatches of a pipeline; 0: twice its stages", NOT_NEGATIVE, PROVENANCE)
  offload: str = field("none", "state that is kept in the host's memory between uses", OneOf(OFFLOAD), PROVENANCE)
