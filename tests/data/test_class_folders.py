"""Folders of classes: which files are read, what is counted, and which layouts are refused."""

import os

import numpy as np
import pytest
from PIL import Image

from bigmodel.data import class_folders, examples
from bigmodel.data.example_sources import image_folder
from bigmodel.errors import UserError
from bigmodel.study import default_config


def fill(root, *paths):
  """Writes a different little picture at each path that is named like one, and some text at others."""
  for i, path in enumerate(paths):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("/"):
      file.mkdir(exist_ok=True)
    elif path.lower().endswith((".png", ".jpg", ".tif")) and not file.name.startswith("."):
      pixels = np.random.default_rng(i).integers(0, 256, (3, 4, 3), np.uint8)
      Image.fromarray(pixels).save(file, "png")
    else:
      file.write_text("text")
  return root


def found(root):
  contents = class_folders.find(root)
  pictures = [(str(p.file.relative_to(root)), p.heldout, p.label) for p in contents.found]
  return pictures, dict(contents.passed_over), contents.notes


SPLIT = ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png")


@pytest.mark.parametrize(
  ("paths", "pictures", "passed_over"),
  [
    (
      ("cat/1.PNG", "dog/2.Jpg", "dog/a.txt", "x.csv", "y.png"),
      ["cat/1.PNG", "dog/2.Jpg"],
      [".csv", ".txt", "outside"],
    ),
    (("cat/a/b/1.png", "dog/2.png"), ["cat/a/b/1.png", "dog/2.png"], []),
    (
      ("cat/1.png", "dog/2.png", "cat/Thumbs.db", "dog/.DS_Store", "dog/._2.png", "__MACOSX/cat/1.png", ".git/x"),
      ["cat/1.png", "dog/2.png"],
      ["hidden"],
    ),
    (("cat/1.png", "dog/2.png", "dog/3.heic", "dog/README"), ["cat/1.png", "dog/2.png"], [".heic", "without suffix"]),
    (("cat/1.png", "dog/2.png", ".ipynb_checkpoints/1.png"), ["cat/1.png", "dog/2.png"], ["hidden"]),
    ((*SPLIT, "annotations/a.xml"), sorted(SPLIT[:2]) + sorted(SPLIT[2:]), ["annotations"]),
  ],
)
def test_what_is_read_and_counted(tmp_path, paths, pictures, passed_over):
  have, counts, _ = found(fill(tmp_path, *paths))
  assert [path for path, _, _ in have] == pictures
  assert all(any(word in key for key in counts) for word in passed_over)
  assert len(counts) == len(passed_over)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("heldout", ["test", "Testing", "val", "Valid", "DEV", "validation", "evaluation"])
def test_splits_in_any_case(tmp_path, train, heldout):
  have, _, notes = found(fill(tmp_path, *(f"{part}/{name}/1.png" for part in (train, heldout) for name in ("a", "b"))))
  assert [(path.split("/")[0], held, name) for path, held, name in have] == [
    *((train, False, name) for name in ("a", "b")),
    *((heldout, True, name) for name in ("a", "b")),
  ]
  assert notes == ()


def test_the_validation_part_is_used_and_the_test_part_left_alone(tmp_path):
  have, counts, notes = found(fill(tmp_path, *SPLIT, "Val/cat/5.png", "Val/dog/6.png"))
  assert [path for path, held, _ in have if held] == ["Val/cat/5.png", "Val/dog/6.png"]
  assert counts == {"in test": 2}
  assert notes == ("Val is held out; test is left alone",)


def test_a_training_part_alone_is_divided(tmp_path):
  have, _, (note,) = found(fill(tmp_path, *SPLIT[:2]))
  assert [name for _, _, name in have] == ["cat", "dog"]
  assert "data.split divides it" in note


def test_classes_that_are_not_held_out_are_noted(tmp_path):
  _, _, (note,) = found(fill(tmp_path, *SPLIT, "train/emu/1.png"))
  assert note == "no picture is held out of 1 of 3 classes: emu"


@pytest.mark.parametrize(
  ("paths", "message"),
  [
    (("1.png", "2.png"), "no picture .* in a folder of its class in .*; 2 lie outside"),
    (("cat/1.png", "dog/"), "dog has no picture; each folder"),
    (("cat/1.png", "dog/1.heic"), r"dog has no picture but files that are not read \(1 .heic\)"),
    (("cat/1.heic", "dog/1.heic"), r"no picture .*cat has no picture but .*1 .heic"),
    (("cat/1.png", "cat/2.png"), "all 2 pictures in .* are of one class, 'cat'"),
    (("pets/cat/1.png", "pets/dog/2.png"), "one class, 'pets'; if the 2 folders in it .*config.data.path=.*/pets"),
    (("Cat/1.png", "cat/2.png"), "'Cat' and 'cat' in .* differ only in case"),
    (("caf\u00e9/1.png", "cafe\u0301/2.png"), "differ only in"),
    (("Train/a/1.png", "train/a/2.png", "test/a/3.png"), "has Train, train, which are the same part"),
    (("train/a/1.png", "val/a/2.png", "valid/a/3.png"), "has val, valid, which are the same part"),
    (("val/a/1.png", "test/a/2.png"), "has val, test and no folder called train"),
    (("seg_train/a/1.png", "seg_test/a/2.png"), "look like a split and not like classes"),
    (("train/1.png", "bus/1.png", "car/1.png"), "has train beside bus, car"),
    ((*SPLIT, "test/emu/1.png"), "holds out pictures of emu, of which there are none to train on"),
    ((*SPLIT[:2], "test/1.png", "test/2.png"), "no picture .*test; 2 lie outside.*the training folder alone"),
    ((*SPLIT, "train/emu/"), "emu has no picture"),
    ((os.fsdecode(b"caf\xe9/1.png"), "dog/2.png"), "is not UTF-8"),
  ],
)
def test_refused(tmp_path, paths, message):
  with pytest.raises(UserError, match=message) as error:
    found(fill(tmp_path, *paths))
  assert "\n" not in str(error.value)


def test_links_and_a_root_that_is_hidden(tmp_path):
  store = fill(tmp_path / "store", "1.png", "2.png")
  root = fill(tmp_path / ".data", "dog/2.png")
  (root / "cat").symlink_to(store)
  (root / "dog" / "again").symlink_to(root / "dog")
  (root / "dog" / "self.png").symlink_to(root / "dog" / "self.png")
  have, counts, _ = found(root)
  assert [path for path, _, _ in have] == ["cat/1.png", "cat/2.png", "dog/2.png", "dog/self.png"]
  assert counts == {"links to a folder above": 1}
  config = default_config("mlp")
  config.data.update(name="image_folder", path=str(root))
  with pytest.raises(UserError, match=r"self\.png cannot be read"):
    image_folder.read(config.data)


def test_a_pipe_that_is_named_like_a_picture_is_not_opened(tmp_path):
  root = fill(tmp_path, "cat/1.png", "dog/2.png")
  os.mkfifo(root / "cat" / "2.png")
  have, counts, _ = found(root)
  assert [path for path, _, _ in have] == ["cat/1.png", "dog/2.png"]
  assert counts == {".png": 1}


def card_of(root, **fields):
  config = default_config("mlp")
  config.data.update(name="image_folder", path=str(root), **fields)
  return examples.prepare(config).card


def test_the_card_counts_and_notes(tmp_path, caplog):
  fill(tmp_path, *(f"{name}/{i}{name}.png" for name in ("cat", "dog") for i in range(6)), "cat/a.txt", "cat/Thumbs.db")
  assert card_of(tmp_path)["passed over"] == {".txt": 1, "hidden": 1}
  for file in tmp_path.glob("*/*.png"):
    grey = np.array(Image.open(file).convert("L"))
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 9)])).save(file)
  for _ in range(2):  # the second time from the cache
    notes = " ".join(card_of(tmp_path)["notes"])
    assert "12 of 12 pictures: transparent in part and put on white" in notes
    assert "the 3 channels of every pixel are equal" in notes
    assert "1 .txt, 1 hidden" in notes
  assert "put on white" in caplog.text
  for file in tmp_path.glob("*/*.png"):
    red = np.random.default_rng(int(file.stem[0])).integers(0, 40, (3, 4), np.uint8)
    Image.fromarray(np.dstack([red, 0 * red, 0 * red + 7])).save(file)
  notes = " ".join(card_of(tmp_path, split="random", fold=1)["notes"])
  assert "channel 1 of all pixels of all pictures is 0" in notes
  assert "channel 2 of all pixels of all pictures is 7" in notes
  assert "no pixel is above" in notes


def test_ordinary_pictures_have_no_notes(tmp_path):
  card = card_of(fill(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6))))
  assert "notes" not in card
  assert "passed over" not in card
