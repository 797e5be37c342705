"""Published digits, from published points."""

import hashlib

import pytest

from bigmodel import experiments
from bigmodel.errors import UserError
from bigmodel.laws import reproduce

NAMES = ("chinchilla_refit", "kaplan_conventions", "isoflop_exponents", "overtraining", "ladder", "routing")


@pytest.mark.parametrize("name", NAMES)
def test_a_paper_is_reproduced(scaling_data, name):
  claim, results = experiments.run(name, str(scaling_data))
  assert "Claim (" in claim
  compared = [result for result in results if result.published is not None]
  assert compared
  assert [(r.what, r.ours, r.published) for r in compared if r.verdict != "the same"] == []


def test_an_unknown_name_is_refused():
  with pytest.raises(UserError, match=r"no experiment 'laddr' .did you mean 'ladder'"):
    experiments.run("laddr")


def test_published_points_are_read_from_the_users_folder_or_from_the_cache(tmp_path, monkeypatch):
  """Not in a folder that happens to be beside the repository."""
  monkeypatch.setattr(reproduce, "SOURCES", {})
  monkeypatch.delenv("BIGMODEL_SCALING_DATA", raising=False)
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  assert reproduce.data_folder() == tmp_path / "cache" / "scaling_data"
  monkeypatch.setenv("BIGMODEL_SCALING_DATA", str(tmp_path))
  assert reproduce.data_folder() == tmp_path
  monkeypatch.setenv("BIGMODEL_SCALING_DATA", str(tmp_path / "missing"))
  with pytest.raises(UserError, match=r"no published points at .*missing"):
    reproduce.data_folder()
  assert reproduce.data_folder(str(tmp_path)) == tmp_path


def test_points_are_downloaded_once_and_checked(tmp_path, monkeypatch):
  """A file that differs from the one that was used here is refused, and nothing is written."""
  content = b"x,y\n1,2\n"
  (tmp_path / "there.csv").write_bytes(content)
  address = (tmp_path / "there.csv").as_uri()
  monkeypatch.setattr(reproduce, "SOURCES", {"a/b.csv": (address, hashlib.sha256(content).hexdigest())})
  folder = reproduce.download(tmp_path / "cache")
  assert (folder / "a" / "b.csv").read_bytes() == content
  (tmp_path / "there.csv").unlink()
  assert reproduce.download(folder) == folder
  with pytest.raises(UserError, match=r"there\.csv can't be fetched"):
    reproduce.download(tmp_path / "other")
  (tmp_path / "there.csv").write_bytes(b"something else")
  with pytest.raises(UserError, match="not the file that was used here"):
    reproduce.download(tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_hashes_are_those_of_the_points_that_are_here(scaling_data):
  for name, (_, digest) in reproduce.SOURCES.items():
    assert hashlib.sha256((scaling_data / name).read_bytes()).hexdigest() == digest
