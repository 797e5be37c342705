"""The data card: a page that describes data of every kind."""

import json

import numpy as np
import polars as pl
from PIL import Image

from bigmodel.cli import main

CONFIG = """from bigmodel.study import default_config
def get_config(arg=None):
  config = default_config("mlp")
  config.data.update({data})
  return config
"""


def card_of(folder, capsys, **data):
  (folder / "config.py").write_text(CONFIG.format(data=", ".join(f"{n}={v!r}" for n, v in data.items())))
  page = folder / "card.html"
  assert main.main(["data", f"--config={folder / 'config.py'}", f"--card={page}", "--json"]) == 0
  return json.loads(capsys.readouterr().out), page.read_text()


def test_the_card_of_a_table_lists_what_its_steps_changed(tmp_path, capsys):
  rng = np.random.default_rng(0)
  age = [None if i == 3 else float(x) for i, x in enumerate(rng.normal(size=40))]
  table = pl.DataFrame({"age": age, "who": ["a", "b"] * 20, "kind": rng.permutation(["x", "y"] * 20)})
  table.write_csv(tmp_path / "t.csv")
  card, page = card_of(tmp_path, capsys, name="table", path=str(tmp_path / "t.csv"), target="kind")
  assert card["splits"]["train"] == {"examples": 32, "class_counts": [16, 16]}
  assert card["missing"] == {"age": 1}
  for said in ("Missing values", "who=a", "impute:median", card["sha256"]):
    assert said in page


def test_images_are_shown(tmp_path, capsys):
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "a.npz", inputs=rng.integers(0, 255, (30, 4, 4, 3)), targets=np.arange(30) % 3)
  card, page = card_of(tmp_path, capsys, name="arrays", path=str(tmp_path / "a.npz"))
  assert card["inputs"] == [4, 4, 3]
  assert "Training images" in page
  assert len(page) > 1_000_000  # with the script that draws


def test_a_note_on_pictures_is_shown_once(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  for i in range(20):
    file = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9 * i, 9 * i, 9 * i)).save(file)
  (tmp_path / "config.py").write_text(CONFIG.format(data=f"name='image_folder', path={str(tmp_path / 'pictures')!r}"))
  words = ["data", f"--config={tmp_path / 'config.py'}", f"--card={tmp_path / 'card.html'}"]
  assert main.main(words) == 0
  printed = "".join(capsys.readouterr())
  page = (tmp_path / "card.html").read_text()
  assert (printed.count("are equal"), page.count("are equal"), page.count(">Notes<")) == (1, 1, 1)
