"""The card of prepared data as one page: counts, classes, what is missing, what steps did, and samples to look at."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bigmodel.data import tokenizer
from bigmodel.data.corpus import Corpus
from bigmodel.data.examples import Examples
from bigmodel.data.pipeline import Data
from bigmodel.report import figures, page

SAMPLES = 24
FEATURES = 12  # that are drawn
LETTERS = 700  # of a document


def write(path: str, data: Data, tokens: tokenizer.Tokenizer | None = None) -> None:
  """Writes the page; `tokens` reads a corpus."""
  card = data.card
  if isinstance(data, Corpus):
    what = f"Text as {card['tokenizer']}, {card['vocab']:,} different tokens"
    columns, plots, texts = ("documents", "bytes", "tokens"), [], _documents(data, tokens) if tokens else []
  else:
    what = f"Examples of shape {tuple(card['inputs'])}, {card['outputs']} outputs"
    columns, plots, texts = ("examples",), _pictures(data), []
  splits = [(split, *(facts[name] for name in columns)) for split, facts in card["splits"].items()]
  tables = [("Splits", "", ("split", *columns), splits), *_tables(card)]
  title, drawn = f"{card['name']}: a data card", [(title, "", figure) for title, figure in plots]
  page.tables(path, title, card["name"], f"{what}. sha256 {card['sha256']}", tables, drawn, texts)


def _tables(card: dict[str, Any]) -> list[tuple[str, str, tuple[str, ...], list[tuple]]]:
  splits, steps, missing = card["splits"], card.get("steps", {}), card.get("missing", {})
  counts = {split: facts["class_counts"] for split, facts in splits.items() if "class_counts" in facts}
  classes = []
  if counts:
    names = card.get("classes") or range(len(next(iter(counts.values()))))
    classes = [(str(name), *(count[i] for count in counts.values())) for i, name in enumerate(names)]
  done = []
  for step, found in steps.items():
    total = found if isinstance(found, int) else sum(found.values())
    where = "" if isinstance(found, int) else ", ".join(f"{name} {count:,}" for name, count in found.items())
    done.append((step, total, where))
  return [
    ("Classes", "", ("class", *counts), classes),
    ("Missing values", "In the whole table, before any step.", ("column", "cells"), list(missing.items())),
    ("Steps", "Rows or cells that each found or changed.", ("step", "in all", "where"), done),
  ]


def _pictures(data: Examples) -> list[tuple[str, go.Figure]]:
  which = np.arange(min(SAMPLES, data.count("train")))
  places = data.places["train"][which]
  inputs, targets = data.inputs[places], data.targets[places]
  names = data.card.get("classes")
  label = lambda y: names[int(y)] if names else f"{y:.3g}" if targets.dtype.kind == "f" else str(int(y))
  if inputs.ndim == 4:
    return [("Training images", _images(inputs, [label(y) for y in targets]))]
  if inputs.ndim == 3:
    figure = figures.blank("row of the window", data.card["features"][0], log_x=False)
    for window in inputs[:6]:
      figure.add_scatter(y=window[:, 0], mode="lines", showlegend=False)
    return [("Training windows", figure)]
  names = data.card["features"] if isinstance(data.card["features"], list) else None
  return [("Features of the training rows", _histograms(data, names))]


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
  starts, ids = data.starts["train"], data.tokens["train"]
  ends = [*starts[1:4], len(ids)]
  return [tokens.decode(ids[start : end - 1][:LETTERS]) for start, end in zip(starts[:3], ends, strict=False)]
