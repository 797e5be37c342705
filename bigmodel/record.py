"""Records: the facts about one run that has ended, in a versioned schema."""

import functools
import hashlib
import importlib.metadata
import json
import math

import msgspec
from etils import epath
from msgspec import UNSET, UnsetType

from bigmodel.accounting import Params
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, read_json, write_json, write_jsonl

SCHEMA = 5
STATUSES = ("finished", "diverged", "failed", "stopped")  # stopped: before its end, in favor of better runs

# Fields in which two executions of the same run may differ.
NOT_RESULT = (
  "result_sha256",
  "trunk",
  "flops_hardware",
  "seconds",
  "tokens_per_second",
  "started_at",
  "ended_at",
  "versions",
  "devices",
)
NULLABLE = ("loss_train", "loss_eval", "loss_eval_stderr", "bits_per_byte", "tokens_per_second")


class Branch(msgspec.Struct, frozen=True, omit_defaults=True):
  """The step at which a run branches off from another run, its trunk. False if it is not a branch."""

  trunk: str = ""  # the trunk's run id
  step: int = 0

  def __bool__(self) -> bool:
    return bool(self.trunk)


class StoppedBy(msgspec.Struct, frozen=True):
  """The forecast for which a run of a sweep was stopped: that of its setting, the mean over seeds.

  `low` is the loss above which the last one lies with the probability `level`, and `best` that of the best setting
  that had finished.
  """

  steps: int  # the horizon
  predicted: float
  low: float
  level: float
  best: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
  """The facts about one run that has ended. Fields that only a finished run can have are None for other runs."""

  schema: int = SCHEMA
  run_id: str
  study: str
  status: str  # one of STATUSES
  error: str = ""
  stopped_by: StoppedBy | UnsetType = UNSET  # a field of the runs that early stopping has stopped
  seed: int
  trunk: Branch = Branch()
  model: dict[str, object]
  params_total: int
  params_non_embedding: int
  params_active: int
  tokens: int  # or examples
  epochs_seen: float
  steps: int
  batch_tokens: int
  learning_rate: float
  flops_6nd: float
  flops_6nd_non_embedding: float
  flops_chinchilla: float
  flops_exact: float
  flops_hardware: float
  loss_train: float | None
  loss_eval: float | None
  loss_eval_stderr: float | None
  bits_per_byte: float | None
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]  # 90%, of the metrics
  params_sha256: str
  data_sha256: str
  result_sha256: str = ""
  seconds: float
  tokens_per_second: float | None
  started_at: str
  ended_at: str
  versions: dict[str, str]
  devices: dict[str, object]

  @property
  def finished(self) -> bool:
    return self.status == "finished"

  @property
  def loss(self) -> float:
    """The held-out loss of a run that finished."""
    assert self.loss_eval is not None
    return self.loss_eval

  def params(self) -> Params:
    return {
      "params_total": self.params_total,
      "params_non_embedding": self.params_non_embedding,
      "params_active": self.params_active,
    }

  def flops(self, convention: str) -> float:
    """The FLOPs of training, under a convention of `accounting.CONVENTIONS`."""
    return getattr(self, convention)


@functools.cache
def versions() -> dict[str, str]:
  """Installed versions of the packages that a result depends on."""
  names = ("bigmodel", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  installed = {}
  for name in names:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = "not installed"
  return installed


def seal(record: Record) -> Record:
  """The record with its `result_sha256`; losses that are not finite become None."""
  values = {name: getattr(record, name) for name in NULLABLE}
  finite = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
  record = msgspec.structs.replace(record, **finite)
  return msgspec.structs.replace(record, result_sha256=result_sha256(to_json(record)))


def result_sha256(document: JsonObject) -> str:
  """The hash of the fields that are the same in every execution of a run."""
  facts = {name: value for name, value in document.items() if name not in NOT_RESULT}
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def to_json(record: Record) -> JsonObject:
  """The JSON document of a record, as in record.json."""
  return msgspec.to_builtins(record)


def from_json(document: object, where: str) -> Record:
  """The record in a JSON document. Raises `UserError`, starting with `where`, for the first invalid field."""
  if not isinstance(document, dict) or document.get("schema") not in (4, SCHEMA):
    raise UserError(f"{where}: not a record of schema {SCHEMA}; delete it to run again")
  if document["schema"] == 4:  # written before runs could branch
    document = {"trunk": {}, **document}
  try:
    record = msgspec.convert(document, Record)
  except (msgspec.ValidationError, UnicodeEncodeError) as error:
    raise UserError(f"{where}: corrupt record: {error}") from error
  if record.status not in STATUSES:
    raise UserError(f"{where}: corrupt record: status is {record.status!r}")
  if record.result_sha256 != result_sha256(document):
    raise UserError(f"{where}: corrupt record: result_sha256 does not match its fields")
  return record


def write(folder: epath.PathLike, record: Record) -> None:
  """Writes `record.json`, the last file of a run: its presence means that the run ended. Never overwrites one."""
  path = epath.Path(folder) / "record.json"
  if not path.exists():
    document = to_json(record)
    from_json(document, str(folder))
    write_json(path, document)


def read(folder: epath.PathLike) -> Record | None:
  """The record of a run's folder, or None where the run has not ended."""
  path = epath.Path(folder) / "record.json"
  return from_json(read_json(path), str(path)) if path.exists() else None


def collect(study: epath.PathLike) -> list[Record]:
  """All records under `STUDY/runs`, sorted by run id; rebuilds `records.jsonl`."""
  study = epath.Path(study)
  runs = sorted((study / "runs").iterdir()) if (study / "runs").exists() else []
  records = [record for run in runs if (record := read(run)) is not None]
  write_jsonl(study / "records.jsonl", map(to_json, records))
  return records
