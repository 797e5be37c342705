"""Records: refused when corrupt; equal hashes for equal results."""

import json

import handmade  # its folder is on the path of pytest
import msgspec
import pytest

from bigmodel import record
from bigmodel.errors import UserError
from bigmodel.files import read_jsonl, write_json, write_text


def example(**changes):
  return record.seal(handmade.record(**changes))


OTHER = {
  int: 2,
  float: 2.0,
  float | None: 2.0,
  str: "y",
  record.Branch: record.Branch("y", 1),
  record.StoppedBy | msgspec.UnsetType: record.StoppedBy(9, 2.0, 1.9, 0.95, 1.5),
  dict[str, object]: {"k": 1},
  dict[str, float]: {"k": 1.0},
  dict[str, str]: {"k": "y"},
  dict[str, tuple[float, float]]: {"k": (1.0, 2.0)},
}


def test_the_result_hash_covers_everything_except_times_versions_and_devices():
  base = example()
  for field in msgspec.structs.fields(record.Record):
    if field.name in ("schema", "status", "result_sha256"):
      continue
    other = example(**{field.name: OTHER[field.type]})
    assert (other.result_sha256 == base.result_sha256) == (field.name in record.NOT_RESULT), field.name


def read(folder):
  found = record.read(folder)
  assert found is not None
  return found


def test_missing_losses_are_null_and_stay_valid(tmp_path):
  sealed = example(status="diverged", loss_eval=float("nan"), loss_train=None)
  record.write(tmp_path, sealed)
  assert read(tmp_path).loss_eval is None


def test_records_from_before_branches_are_read(tmp_path):
  old = record.to_json(example(schema=4))
  del old["trunk"]
  write_json(tmp_path / "record.json", old)
  assert not read(tmp_path).trunk


@pytest.mark.parametrize("damage", ["torn", "changed", "field", "foreign"])
def test_corrupt_records_are_refused_by_name(tmp_path, damage):
  sealed = record.to_json(example())
  text = json.dumps(sealed)
  if damage == "torn":
    text = text[: len(text) // 2]
  elif damage == "changed":
    text = json.dumps(sealed | {"loss_eval": 0.5})
  elif damage == "field":
    text = json.dumps({k: v for k, v in sealed.items() if k != "tokens"})
  else:
    text = "[1, 2]"
  (tmp_path / "record.json").write_text(text)
  with pytest.raises(UserError, match=r"record\.json.*(corrupt|not a record)"):
    record.read(tmp_path)


def test_records_jsonl_can_be_rebuilt(tmp_path):
  for run in ("b", "a"):
    record.write(tmp_path / "runs" / run, example(run_id=run))
  record.collect(tmp_path)
  before = (tmp_path / "records.jsonl").read_text()
  (tmp_path / "records.jsonl").unlink()
  record.collect(tmp_path)
  assert (tmp_path / "records.jsonl").read_text() == before
  assert [row["run_id"] for row in read_jsonl(tmp_path / "records.jsonl")] == ["a", "b"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  write_json(tmp_path / "x.json", {"a": 1})
  with pytest.raises(ValueError, match="JSON compliant"):
    write_json(tmp_path / "x.json", {"a": float("nan")})
  with pytest.raises(UnicodeEncodeError):
    write_text(tmp_path / "x.json", "\ud800")
  assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_torn_tails_are_dropped_and_torn_middles_are_not(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
  assert [row["step"] for row in read_jsonl(path)] == [1, 2]
  path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
  with pytest.raises(UserError, match="line 2"):
    list(read_jsonl(path))
