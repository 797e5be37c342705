"""Tables: cleaned by named steps, encoded, split without leaks, refused with their column or row."""

import datetime

import numpy as np
import polars as pl
import pytest

from bigmodel import data, study
from bigmodel.data import examples, fields, pipeline, splits, tables
from bigmodel.errors import UserError
from bigmodel.study import default_config

ROWS = 60


def frame(**changes):
  rng = np.random.default_rng(0)
  columns = {
    "age": [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.normal(40, 10, ROWS).round(2))],
    "colour": [("red", "green", "blue", None)[i % 4] for i in range(ROWS)],
    "day": [datetime.date(2024, 1, 1) + datetime.timedelta(days=i) for i in range(ROWS)],
    "firm": [f"f{i % 12}" for i in range(ROWS)],
    "sold": [("no", "yes")[int(x)] for x in rng.random(ROWS) < 0.4],
  }
  return pl.DataFrame({**columns, **changes})


def config_of(path, table, family="mlp", task="classification", **changes):
  file = path / "table.parquet"
  table.write_parquet(file)
  config = default_config(family, task)
  config.data.update(name="table", path=str(file), target="sold", drop=("firm",))
  config.data.update(**changes)
  return config


def refused(config, message):
  def use():
    data.check(config)
    examples.prepare(config)

  with pytest.raises(UserError, match=message) as caught:
    use()
  assert "\n" not in str(caught.value)


def test_columns_become_numbers_with_names(tmp_path):
  data = examples.prepare(config_of(tmp_path, frame(), normalise="none"))
  names = data.card["features"]
  assert names[:2] == ["age", "day days"]
  assert names[-5:] == ["colour=other", "colour=", "colour=blue", "colour=green", "colour=red"]
  row = dict(zip(names, data.inputs[3], strict=True))
  assert row["age"] == np.float32(frame()["age"][3])
  assert row["colour="] == 1  # a missing text is a text of its own
  assert row["day days"] == (datetime.date(2024, 1, 4) - datetime.date(2000, 1, 1)).days
  np.testing.assert_allclose(row["day year cos"], np.cos(2 * np.pi * row["day days"] / 365.2425), atol=2e-3)
  train = data.places["train"]
  age = np.array([np.nan if x is None else x for x in frame()["age"]], np.float32)
  missing = np.flatnonzero(np.isnan(age))
  np.testing.assert_array_equal(data.inputs[missing, 0], np.float32(np.nanmedian(age[train])))
  assert data.card["missing"] == {"age": 9, "colour": 15}
  assert data.card["steps"]["impute:median"] == {"age": 9}
  assert data.card["classes"] == ["no", "yes"]


def test_csv_and_parquet_give_the_same_table(tmp_path):
  config = config_of(tmp_path, frame())
  one = examples.prepare(config)
  frame().write_csv(tmp_path / "table.csv")
  config.data.path = str(tmp_path / "table.csv")
  other = examples.prepare(config)
  np.testing.assert_allclose(one.inputs, other.inputs, rtol=1e-6)
  np.testing.assert_array_equal(one.targets, other.targets)


@pytest.mark.parametrize("split", ["stratified", "group", "time"])
def test_fitted_steps_do_not_depend_on_held_out_rows(tmp_path, split):
  steps = ("missing_flags", "impute:mean", "clip:1", "drop_outliers:2", "quantile")
  changes = {"steps": steps, "split": split, "folds": 3, "group": "firm", "time": "day", "drop": ()}
  one = examples.prepare(config_of(tmp_path, frame(), **changes))
  held = one.places["validation"]
  assert min(len(held), len(one.places["train"])) > 0
  rng = np.random.default_rng(1)
  table, shuffled = frame(), rng.permutation(held)
  age = [None if x is None else x for x in table["age"]]
  colour = list(table["colour"])
  for at, where in zip(held, shuffled, strict=True):
    age[at] = 1e6 + (table["age"][int(where)] or 0.0)
    colour[at] = "violet"
  other = examples.prepare(config_of(tmp_path, frame(age=age, colour=colour), **changes))
  np.testing.assert_array_equal(one.places["train"], other.places["train"])
  rows = np.arange(one.count("train"))
  np.testing.assert_array_equal(one.rows("train", rows)["inputs"], other.rows("train", rows)["inputs"])
  assert one.card["learned"] == other.card["learned"]
  assert one.card["mean"] == other.card["mean"]
  assert not np.array_equal(one.inputs[held], other.inputs[held])


def test_steps_do_what_is_documented_and_count_changes(tmp_path):
  table = frame()
  table = pl.concat([table, table.head(4)])  # four duplicates
  table = table.with_columns(sold=pl.when(pl.arange(0, len(table)) == 30).then(None).otherwise("sold"))
  steps = ("duplicates", "missing_target", "impute:zero", "clip:0.5")
  data = examples.prepare(config_of(tmp_path, table, steps=steps))
  assert data.card["steps"]["duplicates"] == {"rows dropped": 4}
  assert data.card["steps"]["missing_target"] == {"rows dropped": 1}
  assert sum(split["examples"] for split in data.card["splits"].values()) == ROWS - 1
  low, high = data.card["learned"]["clip:0.5"]["age"]
  assert data.inputs[:, 0].min() == np.float32(low)
  assert data.inputs[:, 0].max() == np.float32(high)
  whole = examples.prepare(config_of(tmp_path, table.drop_nulls("sold"), steps=("missing_rows",)))
  assert sum(split["examples"] for split in whole.card["splits"].values()) == table.drop_nulls().height


def test_outliers_are_dropped_from_training_rows_only(tmp_path):
  table = frame(age=[1000.0 if i % 10 == 0 else 40.0 + i % 5 for i in range(ROWS)])
  data = examples.prepare(config_of(tmp_path, table, steps=("drop_outliers:3",), normalise="none"))
  assert data.inputs[data.places["train"], 0].max() < 50
  assert data.inputs[data.places["validation"], 0].max() == 1000
  assert data.card["steps"]["drop_outliers:3"]["training rows dropped"] + data.count("train") + data.count(
    "validation"
  ) == ROWS  # fmt: skip


def test_quantiles_are_normal_scores(tmp_path):
  table = frame(age=np.random.default_rng(0).exponential(size=ROWS) ** 3)
  data = examples.prepare(config_of(tmp_path, table, steps=("quantile",), normalise="none"))
  scores = data.inputs[data.places["train"], 0]
  assert np.abs(np.median(scores)) < 0.1
  assert 0.7 < np.quantile(scores, 0.84) < 1.3


def test_equal_values_share_their_mean_rank(tmp_path):
  table = frame(age=[float(i % 2) for i in range(ROWS)])
  data = examples.prepare(config_of(tmp_path, table, steps=("quantile",), normalise="none"))
  low, high = np.unique(data.inputs[:, 0])
  assert low == pytest.approx(-0.674, abs=0.1)
  assert high == pytest.approx(0.674, abs=0.1)


def test_groups_are_not_split_and_times_are_in_order():
  group = np.random.default_rng(0).integers(0, 17, 200)
  fold = splits.by_group(group, 4)
  for name in range(17):
    assert len(set(fold[group == name])) == 1
  assert np.bincount(fold).min() > 30
  time = np.random.default_rng(0).integers(0, 50, 200)
  last, seen = -1, np.zeros(200, int)
  for k in range(4):
    train, held = splits.by_time(time, 4, k)
    seen += held
    assert time[train].max() < time[held].min()
    assert train.sum() > last
    last = train.sum()
  assert seen.max() == 1  # later rows wait for their own fold


def test_held_out_windows_share_no_row_with_training(tmp_path):
  n, W, H = 100, 8, 3
  table = pl.DataFrame({"t": np.arange(n)[::-1].copy(), "load": np.sin(np.arange(n))[::-1], "heat": np.arange(n) * 2.0})
  config = config_of(tmp_path, table, "mlp", "regression", target="load", drop=(), time="t", window=W, horizon=H)
  config.data.update(folds=4, fold=3, normalise="none")
  data = examples.prepare(config)
  assert data.facts["inputs"] == (W, 3)
  assert data.card["features"] == ["load", "t", "heat"]
  sunk = np.sin(np.arange(n)).astype(np.float32)
  mean, deviation = data.facts["target_mean"], data.facts["target_deviation"]
  assert isinstance(mean, float)
  assert isinstance(deviation, float)
  for split in ("train", "validation"):
    rows = data.rows(split, np.arange(data.count(split)))
    said = rows["targets"] * deviation + mean
    for inputs, answer, start in zip(rows["inputs"], said, data.places[split], strict=True):
      np.testing.assert_allclose(inputs[:, 0], sunk[start : start + W], rtol=1e-6)
      np.testing.assert_allclose(answer, sunk[start + W - 1 + H], atol=1e-5)
  seen = data.places["train"].max() + W - 1 + H
  assert data.places["validation"].min() > seen
  moved = table.with_columns(load=pl.when(pl.col("t") > seen).then(1e5).otherwise("load"))
  config.data.normalise = "standard"
  one = examples.prepare(config)
  moved.write_parquet(tmp_path / "table.parquet")
  other = examples.prepare(config)
  np.testing.assert_array_equal(one.mean, other.mean)
  np.testing.assert_array_equal(one.deviation, other.deviation)


def test_bad_tables_are_refused_with_their_column_or_row(tmp_path):
  refused(
    config_of(tmp_path, frame(), target="sould"),
    r"config.data.target: no column 'sould' \(did you mean 'sold'.*the columns are ",
  )
  refused(config_of(tmp_path, frame(age=[None] * ROWS)), "column 'age'")
  refused(config_of(tmp_path, frame(copy=frame()["sold"])), "column 'copy' has the same information as the target")
  refused(config_of(tmp_path, frame(sold=[None, *frame()["sold"][1:]])), "'sold' is missing in row 1; the step miss")
  refused(config_of(tmp_path, frame(sold=["yes"] * ROWS)), "config.data: all 60 targets are of one class")
  refused(config_of(tmp_path, frame(), steps=()), "column 'age' is missing in row 1; impute")
  refused(config_of(tmp_path, frame(), steps=("impute", "duplicates")), "duplicates drops rows on which impute was")
  refused(config_of(tmp_path, frame(), steps=("duplicates:1",)), "duplicates takes no argument")
  refused(config_of(tmp_path, frame(), classes=("no", "yes", "no")), "names a class twice")
  refused(config_of(tmp_path, frame(), time="day", window=3, group="firm", drop=()), "windows are of one series")
  refused(config_of(tmp_path, frame(), time="day", split="time", split_seed=1), "nothing is drawn for this split")
  long = frame(day=[datetime.timedelta(days=i) for i in range(ROWS)])
  refused(config_of(tmp_path, long), "column 'day' holds Duration")
  refused(config_of(tmp_path, frame(), steps=("imput",)), r"no step 'imput' \(did you mean 'impute'")
  refused(config_of(tmp_path, frame(), split="time"), "config.data.time: empty")
  same = frame(day=[datetime.date(2024, 1, 1)] * ROWS)
  refused(config_of(tmp_path, same, split="time", time="day"), "too many rows have the same time")
  rare = frame(sold=["yes"] + ["no"] * (ROWS - 1))
  refused(
    config_of(tmp_path, rare),
    "all (train|validation) examples are of class 0; the class 'yes' has 1 example in all, too few",
  )
  refused(config_of(tmp_path, frame(), "mlp", "regression"), "'sold' holds values such as 'no', not numbers; the task")
  unsure = frame(sold=["?", *frame()["sold"][1:]])
  refused(config_of(tmp_path, unsure), r"'sold' is missing in row 1 \('\?'; name it in data.classes if it is a class\)")
  named = examples.prepare(config_of(tmp_path, unsure, classes=("no", "yes", "?")))
  assert named.card["classes"] == ["no", "yes", "?"]
  cleaned = examples.prepare(config_of(tmp_path, unsure, steps=("missing_target", "impute")))
  assert cleaned.card["classes"] == ["no", "yes"]
  assert cleaned.card["notes"][0] == "column 'sold': 1 cells with '?' are missing values"
  signs = examples.prepare(config_of(tmp_path, frame(sold=["-", "+"] * (ROWS // 2))))
  assert signs.card["classes"] == ["+", "-"]
  numbers = frame(age=["12"] * (ROWS - 1) + ["12 kg"])
  refused(config_of(tmp_path, numbers), f"column 'age' has '12 kg' among numbers, in row {ROWS}; the step bad_cells")
  cleaned = examples.prepare(config_of(tmp_path, numbers, steps=("bad_cells", "impute")))
  assert cleaned.card["steps"]["bad_cells"] == {"age": 1}
  (tmp_path / "broken.csv").write_bytes(b"a,b\n1,2\n3,\xff\xfe\n")
  config = config_of(tmp_path, frame())
  config.data.path = str(tmp_path / "broken.csv")
  refused(config, "broken.csv cannot be read")


def test_times_keep_all_their_digits(tmp_path):
  """In float32, seconds since 1970 are equal for minutes."""
  table = pl.DataFrame({"t": [1.7e9 + i for i in range(100)][::-1], "x": np.arange(100.0)[::-1] ** 2})
  config = config_of(tmp_path, table, "mlp", "regression", target="x", drop=(), time="t", window=4, normalise="none")
  data = examples.prepare(config)
  first = data.rows("train", np.arange(1))["inputs"][0, :, 0]
  np.testing.assert_array_equal(first, [0, 1, 4, 9])
  blocks = np.bincount(data.clusters)
  assert blocks.max() == 5  # windows that share rows are of one cluster, or of its neighbour


def test_bad_cells_are_missing_and_not_numbers(tmp_path):
  cells = ["1.5", "N/A", "inf", "nan", *map(str, range(ROWS - 4))]
  config = config_of(tmp_path, frame(age=cells), steps=("bad_cells", "impute:zero"), normalise="none")
  data = examples.prepare(config)
  assert data.card["steps"]["bad_cells"] == {"age": 1}
  assert data.card["steps"]["infinite"] == {"age": 1}
  np.testing.assert_array_equal(data.inputs[:4, 0], [1.5, 0, 0, 0])
  names = examples.prepare(config_of(tmp_path, frame(sold=["0", "1"] * 29 + ["X", "X"])))  # of a class, not bad
  assert names.card["classes"] == ["0", "1", "X"]


def test_missing_numbers_of_a_csv_file_are_missing(tmp_path):
  config = config_of(tmp_path, frame())
  lines = ["age,sold", *(f"{'NA' if i % 4 == 0 else i},{'yes' if i % 3 else 'no'}" for i in range(40))]
  (tmp_path / "t.csv").write_text("\n".join(lines))
  config.data.update(path=str(tmp_path / "t.csv"), drop=())
  data = examples.prepare(config)
  assert data.card["features"] == ["age"]
  assert data.card["missing"] == {"age": 10}


def test_rows_of_a_group_count_as_one_sample(tmp_path):
  config = config_of(tmp_path, frame(), group="firm", drop=(), split="group", folds=3)
  data = examples.prepare(config)
  clusters = pipeline.eval_rows(config, data).clusters
  assert len(np.unique(clusters)) == 4  # of 12 firms in 3 folds


def test_row_names_are_no_leak_and_incomplete_copies_of_the_target_are(tmp_path):
  examples.prepare(config_of(tmp_path, frame(row=[f"r{i}" for i in range(ROWS)], count=["a", "b"] * 30)))
  copy = [None, *frame()["sold"][1:]]
  refused(config_of(tmp_path, frame(copy=copy)), "column 'copy' has the same information as the target")


def test_ranges_apply_to_numbers_and_not_to_codes(tmp_path):
  many = frame(colour=[f"c{i % 50:02d}" for i in range(ROWS)], age=[i % 10 / 10 for i in range(ROWS)]).drop("day")
  data = examples.prepare(config_of(tmp_path, many, "tabular", encode="codes", normalise="unit"))
  assert data.deviation[0] == pytest.approx(0.9)


def test_a_study_s_folds_may_start_from_pinned_data(tmp_path):
  config = config_of(tmp_path, frame(), folds=3)
  config.train.update(steps=2, batch_size=8)
  config.data.sha256 = examples.prepare(config).sha256
  grid = study.Grid({"data.fold": [0, 1, 2]})
  prepared = study.prepare(config, study.Study("folds", "", grid, laws=()), tmp_path / "study")
  assert len({run.config.data.sha256 for run in prepared.runs.values()}) == 3


def test_categories_are_codes_for_embeddings(tmp_path):
  config = config_of(tmp_path, frame(), "tabular", encode="codes")
  data = examples.prepare(config)
  assert data.facts["categories"] == (5,)
  codes = data.rows("train", np.arange(data.count("train")))["inputs"][:, -1]
  assert set(codes) == {1, 2, 3, 4}  # 0 is for what training has not seen


def test_every_name_of_the_steps_is_documented():
  known = {*tables.ROW_STEPS, *tables.COLUMN_STEPS, *tables.OTHER_STEPS}
  assert all(f"`{name}`" in (tables.__doc__ or "") for name in known)


def cities(levels, rows=3000, rare=0):
  """Returns rows over equally frequent levels; each of the last `rare` rows has a level of its own."""
  rng = np.random.default_rng(0)
  names = [f"c{i % levels:03d}" for i in range(rows - rare)] + [f"rare{i}" for i in range(rare)]
  return pl.DataFrame({"city": names, "x": rng.normal(size=rows), "sold": [("no", "yes")[i % 2] for i in range(rows)]})


@pytest.mark.parametrize("encode", fields.ENCODINGS)
@pytest.mark.parametrize(("levels", "rare", "most", "least"), [(300, 0, 1000, 2), (40, 100, 1000, 2), (40, 9, 30, 1)])
def test_rare_levels_are_chosen_on_training_rows_and_counted(tmp_path, caplog, encode, levels, rare, most, least):
  table = cities(levels, rare=rare)
  changes = {"encode": encode, "drop": (), "max_categories": most, "min_category_rows": least}
  found = examples.prepare(config_of(tmp_path, table, "tabular", **changes))
  rows = {split: [table["city"][int(i)] for i in found.places[split]] for split in ("train", "validation")}
  names, counts = np.unique(rows["train"], return_counts=True)
  kept = set(found.card["learned"]["categories"]["city"])
  assert len(kept) == min(most, (counts >= least).sum())
  assert kept <= set(names[counts >= least])
  least_kept = min(counts[np.isin(names, list(kept))])
  assert (counts[~np.isin(names, list(kept))] <= max(least_kept, least - 1)).all()  # the most frequent ones are kept
  if levels == 300:
    assert len(kept) == 300
  others = {split: sum(city not in kept for city in cities_) for split, cities_ in rows.items()}
  assert found.card["other"]["city"] == {
    "categories": len(kept),
    "texts in training": len(names),
    "training rows": others["train"],
    "held-out rows": others["validation"],
  }
  assert found.card["steps"][tables.OTHER_STEP] == ({"city": sum(others.values())} if sum(others.values()) else {})
  other = found.inputs[:, found.card["features"].index("city" if encode == "codes" else "city=other")]
  np.testing.assert_array_equal(other == (0 if encode == "codes" else 1), [n not in kept for n in table["city"]])
  much = any(others[split] > 0.1 * len(rows[split]) for split in rows)
  assert much == any(f"'city': {others['train']} of {len(rows['train'])} training" in text for text in caplog.messages)


@pytest.mark.parametrize("window", [0, 5])
def test_rows_of_a_later_period_are_neither_training_nor_held_out(tmp_path, caplog, window):
  """A split by time leaves rows unused; changes to `other` are counted in the held-out rows only."""
  table = cities(4, rows=500).with_columns(day=pl.arange(0, 500), city=pl.Series([f"p{i // 100}" for i in range(500)]))
  changes = {"drop": (), "split": "time", "time": "day", "folds": 5, "fold": 0}
  if window:
    changes |= {"window": window, "horizon": 1, "split": "time"}
  found = examples.prepare(config_of(tmp_path, table, **changes))
  assert found.card["notes"][-1].startswith("fold=0 of 5 by time trains on 83 rows and holds out the 8")
  assert "rows of later periods are not used; fold=4 uses all of them" in found.card["notes"][-1]
  count = found.card["splits"]["validation"]["examples"]
  held = found.card["other"]["city"]["held-out rows"]
  assert 0 < held <= count + window
  assert f"{held} of {count + window} held-out rows" in caplog.text
  if not window:
    assert held == sum(table["city"][int(i)] != "p0" for i in found.places["validation"])


def test_invalid_limits_of_categories_are_refused(tmp_path, monkeypatch):
  refused(config_of(tmp_path, frame(), max_categories=0), "config.data.max_categories: 0; at least 1")
  refused(config_of(tmp_path, frame(), min_category_rows=-1), "config.data.min_category_rows: -1; at least 1")
  refused(
    config_of(tmp_path, frame(), name="arrays", target="", drop=(), max_categories=9),
    "only tables have this field, and arrays is not a table",
  )
  monkeypatch.setattr("os.sysconf", lambda name: 1000)
  refused(config_of(tmp_path, cities(300), drop=()), "config.data.max_categories: 3000 rows of 302 features are 0.0 GB")


def test_prepared_tables_are_named_by_all_their_inputs(tmp_path):
  """Changing any field that affects the examples changes the name."""
  windows = {"time": "day", "window": 4, "folds": 2}
  changes = {
    "path": ({}, {}),  # of a file with other contents, see below
    "normalise": ({}, {"normalise": "unit"}),
    "split": ({}, {"split": "random"}),
    "folds": ({}, {"folds": 4}),
    "fold": ({}, {"fold": 1}),
    "split_seed": ({}, {"split_seed": 1}),
    "target": ({}, {"target": "colour"}),
    "classes": ({}, {"classes": ("yes", "no")}),
    "drop": ({}, {"drop": ("firm", "age")}),
    "group": ({"drop": ()}, {"drop": (), "group": "firm"}),
    "time": ({}, {"time": "day"}),
    "steps": ({}, {"steps": ("impute:mean",)}),
    "encode": ({}, {"encode": "codes"}),
    "min_category_rows": ({}, {"min_category_rows": 3}),
    "max_categories": ({}, {"max_categories": 2}),
    "categories": ({}, {"categories": 2}),
    "window": (windows, windows | {"window": 5}),
    "horizon": (windows, windows | {"horizon": 2}),
  }
  ignored = {*data.FREE, "kind", "name", "sha256", "image_size"} - {"path"}
  assert set(changes) == set(data.declared("examples")) - ignored
  filled = frame(colour=[("red", "green", "blue", "red")[i % 4] for i in range(ROWS)])
  other = filled.with_columns(age=1.0 + pl.col("day").dt.day())
  for name, pair in changes.items():
    tables_ = (filled, other if name == "path" else filled)
    names = {
      examples.prepare(config_of(tmp_path, table, "tabular", **changed)).sha256
      for table, changed in zip(tables_, pair, strict=True)
    }
    assert len(names) == 2, name


def people(rows=200):
  rng = np.random.default_rng(0)
  days = [datetime.date(2023, 1, 1) + datetime.timedelta(days=3 * i) for i in range(rows)]
  return {
    "price": [f'"${x:,.2f}"' if i % 5 else "?" for i, x in enumerate(rng.uniform(1e3, 1e5, rows))],
    "share": [f"{x:.1f}%" for x in rng.uniform(0, 100, rows)],
    "when": [f"{day:%m/%d/%Y}" for day in days],
    "key": [f"{i * 7919 % 9973:x}-{i}" for i in range(rows)],
    "colour": [("red", "green", "None")[i % 3] for i in range(rows)],
    "one": ["5"] * rows,
    "sold": [("no", "yes")[int(x)] for x in rng.random(rows) < 0.4],
  }


def config_of_csv(path, columns, **changes):
  lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
  (path / "people.csv").write_text("\n".join(lines) + "\n")
  config = default_config("mlp", "classification")
  config.data.update(name="table", path=str(path / "people.csv"), target="sold", normalise="none", **changes)
  return config


def test_cells_for_people_are_numbers_and_dates_and_the_card_says_so(tmp_path):
  columns = people()
  found = examples.prepare(config_of_csv(tmp_path, columns))
  row = dict(zip(found.card["features"], found.inputs[1], strict=True))
  assert row["price"] == np.float32(columns["price"][1].strip('"$').replace(",", ""))
  assert row["share"] == np.float32(float(columns["share"][1][:-1]) / 100)
  assert row["when days"] == (datetime.date(2023, 1, 4) - datetime.date(2000, 1, 1)).days
  assert found.card["missing"] == {"price": 40, "colour": 66}
  assert found.card["notes"] == [
    "column 'price': commas between thousands, $ left out",
    "column 'price': 40 cells with '?' are missing values",
    "column 'share': 77% is .77",
    "column 'when': dates with the month first, such as '01/01/2023'",
    "column 'colour': 66 cells with 'None' are missing values",
    "column 'key' has another text in each row and is left out",
    "column 'one' has one value in all training rows",
  ]
  cleaned = examples.prepare(config_of_csv(tmp_path, columns, steps=("bad_cells", "impute:median")))
  assert cleaned.card["steps"]["bad_cells"] == {"price": 40}


@pytest.mark.parametrize("unit", [" kg", " years", "\u00b0C", " m\u00b2", " km/h"])
@pytest.mark.parametrize("different", [200, 40])
def test_a_unit_that_all_cells_share_is_left_out(tmp_path, unit, different):
  weights = [f"{i % different}{unit}" for i in range(200)]
  found = examples.prepare(config_of_csv(tmp_path, {"w": weights, "sold": ["no", "yes", "no", "no", "yes"] * 40}))
  assert found.card["notes"] == [f"column 'w': {unit.strip()} left out"]
  assert found.inputs[3, 0] == 3


@pytest.mark.parametrize(
  ("column", "message"),
  [
    ([f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2024" for i in range(200)], "column 'x': .* may have the day"),
    ([f'"{i % 9 + 1},{i:03d}"' for i in range(200)], "column 'x': '1,000' may be 1000 or 1"),
    ([f"n{i % 150}" if i % 2 else f"m{i % 190}" for i in range(200)], "data.drop: column 'x' has .* different texts"),
    ([""] * 200, "column 'x' is missing in all training rows; name it there"),
    ([f"{i}" if i % 20 else "bad" for i in range(200)], "column 'x' has 'bad' among numbers, in line 2; the step bad_"),
    (
      [f"{day:%d.%m.%Y}" if day.day > 1 else "soon" for day in map(datetime.date.fromordinal, range(738000, 738200))],
      "column 'x' has 'soon' among dates",
    ),
  ],
)
def test_columns_in_doubt_are_refused_with_what_to_do(tmp_path, column, message):
  sold = [("no", "yes")[i % 2] for i in range(200)]
  refused(config_of_csv(tmp_path, {"x": column, "sold": sold}), message)


def test_columns_that_number_the_rows_are_refused_and_rare_texts_can_be_accepted(tmp_path):
  sold = [("no", "yes")[i % 3 == 0] for i in range(200)]
  other = [str(i % 7) for i in range(200)]
  ids = {"customer_id": [str(9000 + i) for i in range(200)], "other": other, "sold": sold}
  refused(config_of_csv(tmp_path, ids), "config.data.drop: column 'customer_id' has another number in each row")
  scattered = [str(100 + i * 7919 % 10007) for i in range(200)]
  for name in ("orderId", "ID", "user key"):
    refused(config_of_csv(tmp_path, {name: scattered, "other": other, "sold": sold}), f"column '{name}' has another")
  refused(config_of_csv(tmp_path, {"row": ids["customer_id"], "other": other, "sold": sold}), "or give it another name")
  for name in ("bid", "citric_acid", "GRID", "price_index", "atomic_number", "index"):
    features = examples.prepare(config_of_csv(tmp_path, {name: scattered, "other": other, "sold": sold})).card
    assert features["features"] == [name, "other"]
    assert len(features.get("notes", ())) == (name in ("atomic_number", "index"))
  rare = [f"n{i}" if i % 4 else "often" for i in range(200)]
  found = examples.prepare(config_of_csv(tmp_path, {"name": rare, "other": other, "sold": sold}, categories=5))
  assert found.card["learned"]["categories"]["name"] == ["often"]


def test_plain_tables_keep_their_names(tmp_path):
  """The field `categories` and the conversions came later; data without them keep their hash."""
  columns = {"x": [str(i % 17 / 4) for i in range(60)], "sold": [("no", "yes")[i % 2] for i in range(60)]}
  found = examples.prepare(config_of_csv(tmp_path, columns))
  assert "notes" not in found.card
  assert found.sha256[:16] == "b62804c18a3fbf82"
