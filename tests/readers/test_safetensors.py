"""Safetensors files are read as the library of that name reads them, or refused in one line that says what is wrong."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from bigmodel.errors import UserError
from bigmodel.readers import json_document, safetensors

TENSORS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.ones(3, np.float16),
  "c": np.zeros((0, 4), np.float64),
  "d": np.arange(4, dtype=np.int32),
}
GOOD = save(TENSORS, {"format": "pt"})
ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header, data=b""):
  """A safetensors file of a header, as JSON or bytes, and the bytes of its tensors."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(header).to_bytes(8, "little") + header + data


def test_values_are_those_of_the_library_and_bfloat16_becomes_float32(tmp_path):
  path = tmp_path / "a b.safetensors"
  path.write_bytes(GOOD)
  tensors = safetensors.read(path)
  assert tensors.keys() == TENSORS.keys()
  for name in "abc":
    np.testing.assert_array_equal(tensors[name].values(), TENSORS[name])
  with pytest.raises(
    UserError, match="'d' has values of type I32, as quantised weights have; only F64, F32, F16, BF16"
  ):
    tensors["d"].values()
  values = np.array([1.5, -2.0, np.inf, 3.140625], np.float32)
  path.write_bytes(
    file({"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, values.view(np.uint16)[1::2].tobytes())
  )
  np.testing.assert_array_equal(safetensors.read(path)["x"].values(), values)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "it is empty; download it again"),
    (bytes(4096), "begins with zeros, as an interrupted download does"),
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
      "it is a Git LFS pointer .* `git lfs pull`",
    ),
    (b"<!DOCTYPE html><html>", "it is a web page; download the raw file"),
    (b"PK\x03\x04" + bytes(90), "it is a zip archive, such as a PyTorch file"),
    (b"GGUF" + bytes(range(90)), "it is a GGUF file"),
    (b"\x80\x02" + bytes(range(90)), "it is a Python pickle"),
    (b"abcdefghijklmnop", "not a safetensors file: it begins with b'abcdefghijklmnop'"),
    (GOOD[:-1], "ends after 45 of 46 bytes of tensors; the download is incomplete"),
    (GOOD[:60], r"ends inside its header \(60 bytes\); the download is incomplete"),
    (GOOD + b"x", "1 bytes follow its last tensor"),
    ((1 << 63).to_bytes(8, "little") + GOOD[8:], "not a safetensors file"),
    (file(b"{]"), "its header is damaged"),
    (file(b'{"x": ' + b"[" * 100_000), "its header is damaged"),
    (file(b'{"x":1,"x":2}'), "its header is damaged .a name occurs twice"),
    (file({"x": [1]}), r"tensor 'x' is described by \[1\]"),
    (file({"x": ONE | {"dtype": "F99"}}), '"F99"'),
    (file({"x": ONE | {"shape": [-2]}}), r"has the shape \[-2\]"),
    (file({"x": ONE | {"shape": [2**62, 2**62]}}, bytes(8)), "do not fill the bytes 0 to 8"),
    (file({"x": ONE | {"data_offsets": [0, 2**63]}}), "the offsets"),
    (file({"x": ONE | {"data_offsets": [8, 16]}}, bytes(16)), "leaves a gap before it"),
    (file({"x": ONE, "y": ONE}, bytes(16)), "overlaps the one before it"),
  ],
)
def test_damaged_and_other_files_are_refused(content, message, tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as raised:
    safetensors.read(path)
  assert "model.safetensors" in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("content", "result"),
  [
    (b'{"a": 1}', {"a": 1}),
    (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    ('{"a": "\u00e9"}'.encode("utf-16"), {"a": "\u00e9"}),
    (b"", "it is empty"),
    (b"\r\n<html>", "it is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    (b"Entry not found", "it begins with b'Entry not found'"),
    (b"[1, 2]", r"not a JSON object but \[1, 2\]"),
    (b'{"a": 1', "not JSON"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
  ],
)
def test_json_documents(content, result, tmp_path):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  if isinstance(result, dict):
    assert json_document.read(path) == result
    return
  with pytest.raises(UserError, match=f"config.json: .*{result}"):
    json_document.read(path)
