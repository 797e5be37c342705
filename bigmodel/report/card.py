"""The card of prepared data as a page: counts, classes, missing values, the effect of each step, and samples."""

import msgspec
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bigmodel.data import tokenizer
from bigmodel.data.corpus import Corpus
from bigmodel.data.examples import Examples
from bigmodel.data.pipeline import Data
from bigmodel.report import figures, page
from bigmodel.report.page import Page, Plot, Table

SAMPLES = 24  # images that are shown
WINDOWS = 6  # windows of series that are shown
FEATURES = 12  # histograms that are shown
LETTERS = 700  # of each document
DOCUMENTS = 3


class Split(msgspec.Struct, frozen=True):
  """Counts of a split: of a corpus documents, bytes and tokens, of other data examples."""

  documents: int = 0
  bytes: int = 0
  tokens: int = 0
  examples: int = 0
  class_counts: list[int] = []


class Card(msgspec.Struct, frozen=True, kw_only=True):
  """The fields of card.json that the page shows; which are there depends on the kind of data."""

  name: str
  sha256: str
  splits: dict[str, Split]
  tokenizer: str = ""
  vocab: int = 0
  inputs: list[int] = []  # shape of an example
  outputs: int = 0
  classes: list[str | int] | None = None
  features: list[str] | int | None = None
  missing: dict[str, int] = {}  # cells by column
  notes: list[str] = []  # what was assumed or stands out
  steps: dict[str, int | dict[str, int]] = {}  # rows or cells that each step changed, in all or by column
  passed_over: dict[str, int] = {}  # files that are not read, by suffix


def write(path: str, data: Data, tokens: tokenizer.Tokenizer | None = None) -> None:
  """Writes the page; `tokens` decodes the documents of a corpus, which are left out without it."""
  card = msgspec.convert(data.card, Card)
  plots, texts = [], []
  if isinstance(data, Corpus):
    summary = f"Text as {card.tokenizer}, {card.vocab:,} different tokens"
    columns = ("documents", "bytes", "tokens")
    texts = _documents(data, tokens) if tokens else []
  else:
    summary = f"Examples of shape {tuple(card.inputs)}, {card.outputs} outputs"
    columns = ("examples",)
    plots = [_samples(data, card)]
  rows = [(name, *(getattr(split, column) for column in columns)) for name, split in card.splits.items()]
  tables = [Table("Splits", "", ("split", *columns), rows), *_tables(card)]
  title = f"{card.name}: a data card"
  page.write_page(path, Page(title, card.name, f"{summary}. sha256 {card.sha256}", tables, plots, texts))


def _tables(card: Card) -> list[Table]:
  counts = {name: split.class_counts for name, split in card.splits.items() if split.class_counts}
  classes = []
  if counts:
    names = card.classes or range(len(next(iter(counts.values()))))
    classes = [(str(name), *(count[i] for count in counts.values())) for i, name in enumerate(names)]
  steps = []
  for step, changed in card.steps.items():
    by_column = changed if isinstance(changed, dict) else {}
    total = changed if isinstance(changed, int) else sum(changed.values())
    steps.append((step, total, ", ".join(f"{name} {count:,}" for name, count in by_column.items())))
  missing = list(card.missing.items())
  return [
    Table("Notes", "", ("what was assumed or stands out",), [(note,) for note in card.notes]),
    Table("Classes", "", ("class", *counts), classes),
    Table("Missing values", "In the whole table, before any step.", ("column", "cells"), missing),
    Table("Steps", "The rows or cells that each step changed.", ("step", "in all", "where"), steps),
    Table("Files passed over", "", ("kind", "files"), list(card.passed_over.items())),
  ]


def _samples(data: Examples, card: Card) -> Plot:
  """Training images, training windows of a series, or histograms of training features."""
  places = data.places["train"][: min(SAMPLES, data.count("train"))]
  inputs, targets = data.inputs[places], data.targets[places]
  if inputs.ndim == 4:
    return Plot("Training images", "", _images(inputs, [_label(y, card.classes) for y in targets]))
  names = card.features if isinstance(card.features, list) else None
  if inputs.ndim == 3:
    figure = figures.blank("row of the window", names[0] if names else "feature 0", log_x=False)
    for window in inputs[:WINDOWS]:
      figure.add_scatter(y=window[:, 0], mode="lines", showlegend=False)
    return Plot("Training windows", "", figure)
  return Plot("Features of the training rows", "", _histograms(data, names))


def _label(target: np.generic, classes: list[str | int] | None) -> str:
  if classes:
    return str(classes[int(target)])
  return f"{target:.3g}" if target.dtype.kind == "f" else str(int(target))


def _images(images: np.ndarray, labels: list[str]) -> go.Figure:
  across = 8
  down = -(-len(images) // across)
  figure = make_subplots(down, across, subplot_titles=labels, vertical_spacing=0.08, horizontal_spacing=0.01)
  low, high = float(images.min()), float(images.max())
  for i, image in enumerate(images):
    shown = (255 * (image - low) / max(high - low, 1e-9)).astype(np.uint8)
    shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown[..., :3]
    figure.add_trace(go.Image(z=shown), row=i // across + 1, col=i % across + 1)
  figure.update_xaxes(visible=False)
  figure.update_yaxes(visible=False)
  figure.update_layout(height=130 * down + 40, margin={"l": 4, "r": 4, "t": 26, "b": 4}, template="none")
  return figure


def _histograms(data: Examples, names: list[str] | None) -> go.Figure:
  shown = min(FEATURES, data.inputs.shape[1])
  across, places = 4, data.places["train"]
  down = -(-shown // across)
  titles = [names[i] if names else f"feature {i}" for i in range(shown)]
  figure = make_subplots(down, across, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.05)
  for i in range(shown):
    counts, edges = np.histogram(data.inputs[places, i], bins=30)
    bars = go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, marker={"color": figures.FORECAST}, showlegend=False)
    figure.add_trace(bars, row=i // across + 1, col=i % across + 1)
  figure.update_layout(height=170 * down + 40, margin={"l": 30, "r": 8, "t": 30, "b": 24}, template="none", bargap=0)
  figure.update_annotations(font_size=12)
  return figure


def _documents(data: Corpus, tokens: tokenizer.Tokenizer) -> list[str]:
  """The beginnings of the first training documents."""
  starts, ids = data.starts["train"], data.tokens["train"]
  ends = [*starts[1 : DOCUMENTS + 1], len(ids)]
  return [tokens.decode(ids[start : end - 1][:LETTERS]) for start, end in zip(starts[:DOCUMENTS], ends, strict=False)]
