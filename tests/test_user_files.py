"""Names of the form FILE.py:NAME, which refer to definitions in a user's file."""

import pytest

from bigmodel import study, user_files
from bigmodel.config import flatten
from bigmodel.errors import UserError
from bigmodel.train import configs


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def test_files_with_equal_content_give_one_object(tmp_path):
  first = write(tmp_path / "a" / "mine.py", "thing = object()\n")
  name = f"{first}:thing"
  assert user_files.load(name, "here") is user_files.load(name, "here")
  second = write(tmp_path / "b" / "mine.py", "thing = object()\n")
  short = [user_files.without_path(user_files.complete(f"{path}:thing", "here")) for path in (first, second)]
  assert short[0] == short[1]
  write(second, "thing = object()  # changed\n")
  assert user_files.without_path(user_files.complete(f"{second}:thing", "here")) != short[0]


def test_a_completed_name_refuses_a_file_that_has_changed(tmp_path):
  path = write(tmp_path / "mine.py", "thing = 1\n")
  completed = user_files.complete(f"{path}:thing", "config.model.family")
  assert user_files.complete(completed, "config.model.family") == completed
  write(path, "thing = 2\n")
  with pytest.raises(UserError, match=r"config\.model\.family: .*mine\.py has changed"):
    user_files.load(completed, "config.model.family")


def test_errors_in_a_file_are_reported_in_one_line(tmp_path):
  with pytest.raises(UserError, match=r"here: no file '.*absent\.py'"):
    user_files.load(f"{tmp_path / 'absent.py'}:thing", "here")
  path = write(tmp_path / "mine.py", "def things(): ...\n")
  with pytest.raises(UserError, match=r"defines no 'thing' \(did you mean 'things'\?\); it defines things"):
    user_files.load(f"{path}:thing", "here")
  write(path, "1 / 0\n")
  with pytest.raises(UserError, match=r"mine\.py does not load: ZeroDivisionError"):
    user_files.load(f"{path}:thing", "here")


def test_other_names_are_left_alone():
  assert user_files.complete("decoder", "here") == "decoder"
  assert user_files.without_path("decoder") == "decoder"
  config = study.default_config()
  configs.complete_names(config)
  assert config.model.family == "decoder"


def test_a_file_that_was_edited_at_once_is_read_anew(tmp_path):
  """With a text of the same length, and within the second that a cache of compiled files would tell apart."""
  path = write(tmp_path / "mine.py", "thing = 1\n")
  assert user_files.load(f"{path}:thing", "here") == 1
  write(path, "thing = 2\n")
  assert user_files.load(f"{path}:thing", "here") == 2


def test_a_completed_name_is_found_where_the_file_has_moved(tmp_path):
  path = write(tmp_path / "moved.py", "thing = 'of the test of moving'\n")
  completed = user_files.complete(f"{path}:thing", "here")
  (tmp_path / "new").mkdir()
  path.rename(tmp_path / "new" / "moved.py")
  with pytest.raises(UserError, match="no file"):
    user_files.load(completed, "here")
  user_files.complete(f"{tmp_path / 'new' / 'moved.py'}:thing", "here")  # as the new command line names it
  assert user_files.load(completed, "here") == "of the test of moving"


DEFINITIONS = """
import optax
from flax import linen as nn

class Family(nn.Module):
  vocab: int = 0

  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(self.vocab)(nn.Embed(self.vocab, 8)(tokens))

def task(outputs, batch):
  return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"])

def optim(beta1):
  return optax.trace(beta1)

def data():
  return ["a text"]
"""
DEFINED = {"model.family": "Family", "task.name": "task", "optim.name": "optim", "data.name": "data"}


@pytest.mark.parametrize("field", configs.EXTENSIBLE)
def test_every_extensible_field_is_identified_by_content(tmp_path, field):
  identities = []
  for folder, text in (("a", DEFINITIONS), ("b", DEFINITIONS), ("c", f"{DEFINITIONS}# changed\n")):
    path = write(tmp_path / folder / "mine.py", text)
    config = configs.overridden(study.default_config(), [f"{field}={path}:{DEFINED[field]}"])
    configs.complete_names(config)
    identities.append(configs.identity(flatten(config)))
  assert identities[0] == identities[1] != identities[2]
