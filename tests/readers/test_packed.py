"""Packed files are read to the end of their last stream, or refused by name."""

import gzip
import lzma

import pytest
import zstandard

from bigmodel.errors import UserError
from bigmodel.readers import packed

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
TEXT = b"".join(b"line %d \xc3\xa9\n" % i for i in range(20_000))


def read(path):
  with packed.open_bytes(path) as file:
    return file.read()


@pytest.mark.parametrize("kind", PACK)
def test_all_streams_of_a_file_are_read(kind, tmp_path):
  path = tmp_path / f"a.txt{kind.upper()}"
  path.write_bytes(PACK[kind](TEXT) + PACK[kind](b"") + PACK[kind](TEXT))
  assert read(path) == TEXT + TEXT
  with packed.open_text(path) as lines:
    assert sum(1 for _ in lines) == 40_000


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("cut", [3, 30, 0.5, -5, -1])
def test_truncated_files_are_refused_by_name(kind, cut, tmp_path):
  path = tmp_path / f"a.txt{kind}"
  whole = PACK[kind](TEXT)
  path.write_bytes(whole[: int(len(whole) * cut) if isinstance(cut, float) else cut])
  with pytest.raises(UserError, match=f"a.txt{kind}: "):
    read(path)


@pytest.mark.parametrize("kind", PACK)
def test_damaged_files_are_refused_by_name(kind, tmp_path):
  path = tmp_path / f"a.txt{kind}"
  path.write_bytes(PACK[kind](TEXT) + b"not packed")
  with pytest.raises(UserError, match=f"a.txt{kind}: (a damaged|ends inside)"):
    read(path)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.xz", "a.zst"])
def test_files_with_a_wrong_name_are_refused(kind, name, tmp_path):
  path = tmp_path / name
  path.write_bytes(PACK[kind](TEXT))
  if name.endswith(kind):
    assert read(path) == TEXT
    return
  with pytest.raises(UserError, match=f"{name}: .*{packed.NAMES[kind]} file"):
    read(path)


@pytest.mark.parametrize("content", [b"", b"plain text"])
@pytest.mark.parametrize("kind", PACK)
def test_files_that_are_not_packed_are_refused(kind, content, tmp_path):
  path = tmp_path / f"a{kind}"
  path.write_bytes(content)
  with pytest.raises(UserError, match=f"a{kind}: not a"):
    read(path)


def test_zeros_after_a_stream_and_frames_to_skip_are_no_content(tmp_path):
  zeros = tmp_path / "a.gz"
  zeros.write_bytes(gzip.compress(TEXT) + bytes(512))
  assert read(zeros) == TEXT
  skipped = tmp_path / "a.zst"
  skipped.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(TEXT))
  assert read(skipped) == TEXT
