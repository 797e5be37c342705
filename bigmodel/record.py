"""Records: one row of facts about a run that ended, in a versioned schema."""

import functools
import hashlib
import importlib.metadata
import json
import math
from typing import Any

from etils import epath

from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json, write_jsonl

SCHEMA = 5
STATUSES = ("finished", "diverged", "failed", "stopped")  # stopped: at a rung, where others did better

# field -> type; None is allowed where a run that did not finish cannot know.
FIELDS: dict[str, type | tuple[type, ...]] = {
  "schema": int,
  "run_id": str,
  "study": str,
  "status": str,
  "error": str,
  "seed": int,
  "trunk": dict,  # run_id and step of the run from which it branched, where it did
  "model": dict,
  "params_total": int,
  "params_non_embedding": int,
  "params_active": int,
  "tokens": int,
  "epochs_seen": float,
  "steps": int,
  "batch_tokens": int,
  "learning_rate": float,
  "flops_6nd": float,
  "flops_6nd_non_embedding": float,
  "flops_chinchilla": float,
  "flops_exact": float,
  "flops_hardware": float,
  "loss_train": float,
  "loss_eval": float,
  "loss_eval_stderr": float,
  "bits_per_byte": float,
  "metrics": dict,
  "intervals": dict,  # 90%, of the metrics
  "params_sha256": str,
  "data_sha256": str,
  "result_sha256": str,
  "seconds": float,
  "tokens_per_second": float,
  "started_at": str,
  "ended_at": str,
  "versions": dict,
  "devices": dict,
}
# What two ways of getting the same run may differ in.
NOT_RESULT = (
  "result_sha256", "trunk", "flops_hardware",
  "seconds", "tokens_per_second", "started_at", "ended_at", "versions", "devices",
)  # fmt: skip
NULLABLE = ("loss_train", "loss_eval", "loss_eval_stderr", "bits_per_byte", "tokens_per_second")


@functools.cache
def versions() -> dict[str, str]:
  """Installed versions of what a result depends on."""
  names = ("bigmodel", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  known = {}
  for name in names:
    try:
      known[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      known[name] = "not installed"
  return known


def seal(record: dict[str, Any]) -> dict[str, Any]:
  """The record with its schema and `result_sha256`; non-finite numbers become None."""
  record = {"schema": SCHEMA, "error": "", **record}
  for name, value in record.items():
    if isinstance(value, float) and not math.isfinite(value):
      record[name] = None
  record["result_sha256"] = result_sha256(record)
  return check(record, "record")


def result_sha256(record: dict[str, Any]) -> str:
  facts = {name: value for name, value in record.items() if name not in NOT_RESULT}
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check(record: Any, where: str) -> dict[str, Any]:
  """The record itself, or a `UserError` that names the first field that is wrong."""
  if isinstance(record, dict) and record.get("schema") == 4:  # which knew no branches
    record = {**record, "trunk": {}}
  if not isinstance(record, dict) or record.get("schema") not in (4, SCHEMA):
    raise UserError(f"{where}: not a record of schema {SCHEMA}; delete it to run again")
  for name, kind in FIELDS.items():
    value = record.get(name)
    if value is None and name in record and name in NULLABLE:
      continue
    if kind is float and type(value) is int:
      continue
    if not isinstance(value, kind):
      raise UserError(f"{where}: corrupt record: field {name!r} is {value!r}")
  if record["status"] not in STATUSES:
    raise UserError(f"{where}: corrupt record: status is {record['status']!r}")
  if record["result_sha256"] != result_sha256(record):
    raise UserError(f"{where}: corrupt record: result_sha256 does not match its fields")
  return record


def write(folder: epath.PathLike, record: dict[str, Any]) -> None:
  """Writes `record.json`, the last file of a run: its presence means that the run ended. One that is there stays."""
  path = epath.Path(folder) / "record.json"
  if not path.exists():
    write_json(path, check(record, str(folder)))


def read(folder: epath.PathLike) -> dict[str, Any] | None:
  """The record of a run's folder, or None where the run has not ended."""
  path = epath.Path(folder) / "record.json"
  return check(read_json(path), str(path)) if path.exists() else None


def collect(study: epath.PathLike) -> list[dict[str, Any]]:
  """All records under `STUDY/runs`, sorted by run id; rebuilds `records.jsonl`."""
  study = epath.Path(study)
  runs = sorted((study / "runs").iterdir()) if (study / "runs").exists() else []
  records = [record for run in runs if (record := read(run)) is not None]
  write_jsonl(study / "records.jsonl", records)
  return records
