"""Records: refused when corrupt; equal hashes for equal results."""

import json

import pytest

from bigmodel import record
from bigmodel.errors import UserError
from bigmodel.files import read_jsonl, write_json, write_text


def example(**changes):
  kinds = {int: 1, float: 1.0, str: "x", dict: {}}
  facts = {name: kinds[kind] for name, kind in record.FIELDS.items()} | {"status": "finished"}
  return record.seal({**facts, "schema": record.SCHEMA, **changes})


def test_result_hash_covers_all_but_times_versions_and_devices():
  base = example()
  for name, kind in record.FIELDS.items():
    if name in ("schema", "status", "result_sha256"):
      continue
    other = example(**{name: {int: 2, float: 2.0, str: "y", dict: {"k": 1}}[kind]})
    assert (other["result_sha256"] == base["result_sha256"]) == (name in record.NOT_RESULT), name


def read(folder):
  found = record.read(folder)
  assert found is not None
  return found


def test_missing_losses_are_null_and_stay_valid(tmp_path):
  sealed = example(status="diverged", loss_eval=float("nan"), loss_train=None)
  record.write(tmp_path, sealed)
  assert read(tmp_path)["loss_eval"] is None


def test_records_from_before_branches_are_read(tmp_path):
  old = example(schema=4)
  del old["trunk"]
  write_json(tmp_path / "record.json", old)
  assert read(tmp_path)["trunk"] == {}


@pytest.mark.parametrize("damage", ["torn", "changed", "field", "foreign"])
def test_corrupt_records_are_refused_by_name(tmp_path, damage):
  sealed = example()
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
