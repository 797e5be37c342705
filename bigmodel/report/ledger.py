"""The page of `bigmodel ledger`: sealed forecasts beside the truth, and whether their intervals hold."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from scipy import special

from bigmodel.laws.ledger import NOMINAL, Entry, Ledger
from bigmodel.report import figures, page
from bigmodel.report.page import Page, Plot, Table

BAND = 0.9  # of the binomial band
COLUMNS = (
  "study", "beyond the runs", "forecast", "90% interval", "truth", "forecast / truth - 1", "inside", "width",
  "interval score",
)  # fmt: skip
STUDY_COLUMNS = ("study", "question", "family", "fitted runs")


def write(path: str, ledger: Ledger) -> None:
  """Writes the page."""
  entries = ledger.forecasts
  totals = [
    (one.distance, one.forecasts, *(_share(one.coverage.get(level)) for level in NOMINAL), _percent(one.median_error),
     _percent(one.median_width), one.interval_score)
    for one in ledger.totals
  ]  # fmt: skip
  levels = [f"{nominal:.0%}" for nominal in NOMINAL.values()]
  tables = [
    Table(
      "Coverage",
      "The share of truths inside the intervals of each level, by the distance of the target in multiples of the"
      " largest fitted run. Widths and scores are in ln loss, at 90%.",
      ("distance", "forecasts", *levels, "median error", "median width", "mean interval score"),
      totals,
    ),
    Table("Forecasts", "The nearest first.", COLUMNS, [_row(one) for one in entries]),
    Table("All intervals", "", ("study", *levels), [(one.study, *map(one.intervals.get, NOMINAL)) for one in entries]),
    Table("Studies", "", STUDY_COLUMNS, [(one.study, one.question, one.family, one.fitted) for one in entries]),
    Table("Without a score", "", ("folder or file", "why"), [(one.where, one.why) for one in ledger.without]),
  ]
  plots = []
  if entries:
    text = "On the diagonal, intervals cover what they claim. The band holds 90% of what exact intervals would cover."
    plots = [
      Plot("Calibration", text, calibration(entries)),
      Plot("Each forecast beside its truth", "Bars are 90% intervals; 0 is the truth.", errors(entries)),
    ]
  inside = sum(one.inside["interval90"] for one in entries)
  summary = (
    f"{inside} of {len(entries)} truths lie in the 90% interval. Every forecast was sealed before its run started, and"
    " that run carries the seal."
    if entries
    else "No forecast has a score yet."
  )
  write_page = Page("Ledger of forecasts", "Do sealed forecasts hold?", summary, tables, plots, plots_first=True)
  page.write_page(path, write_page)


def _row(one: Entry) -> tuple[object, ...]:
  verdict = "inside" if one.inside["interval90"] else "OUTSIDE"
  return (
    one.study, f"{one.distance:.3g} times", one.predicted, one.intervals["interval90"], one.actual,
    f"{100 * math.expm1(one.log_error):+.2f}%", verdict, _percent(one.width), one.interval_score,
  )  # fmt: skip


def _percent(log_ratio: float) -> str:
  return f"{100 * log_ratio:.2f}%"


def _share(value: float | None) -> str | None:
  return None if value is None else f"{value:.0%}"


def calibration(entries: Sequence[Entry]) -> go.Figure:
  """The share of truths inside the intervals over the level of these, with the band of exact intervals."""
  figure = figures.blank("level of the intervals", "share of truths inside", log_x=False)
  levels = np.linspace(0.02, 0.99, 98)
  low, high = (binomial_quantile(len(entries), levels, q) / len(entries) for q in ((1 - BAND) / 2, (1 + BAND) / 2))
  figure.add_scatter(
    x=[*levels, *levels[::-1]],
    y=[*high, *low[::-1]],
    fill="toself",
    fillcolor="rgba(42,120,142,0.15)",
    line={"width": 0},
    hoverinfo="skip",
    name=f"{BAND:.0%} of exact intervals",
  )
  figure.add_scatter(
    x=[0, 1], y=[0, 1], mode="lines", line={"color": figures.QUIET, "dash": "dot"}, showlegend=False, hoverinfo="skip"
  )
  observed = {}
  for level, nominal in NOMINAL.items():
    inside = [one.inside[level] for one in entries if level in one.inside]
    if inside:
      observed[nominal] = sum(inside) / len(inside)
  figure.add_scatter(
    x=list(observed),
    y=list(observed.values()),
    mode="lines+markers",
    name="observed",
    line={"color": figures.TRUTH},
    marker={"size": 9},
    hovertemplate="level %{x:.0%}<br>inside %{y:.0%}<extra></extra>",
  )
  return figure.update_xaxes(range=[0, 1.01]).update_yaxes(range=[0, 1.03])


def binomial_quantile(trials: int, p: np.ndarray, q: float) -> np.ndarray:
  """The least number of successes whose cumulative probability is at least q, for each probability p."""
  cumulative = special.bdtr(np.arange(trials + 1)[:, None], trials, p[None, :])
  return np.argmax(cumulative >= q, axis=0).astype(float)


def errors(entries: Sequence[Entry]) -> go.Figure:
  """ln(forecast / truth) of each forecast, with its 90% interval."""
  figure = figures.blank("ln(forecast / truth)", "", log_x=False, height=120 + 26 * len(entries))
  for inside, name, color in ((True, "inside", figures.FORECAST), (False, "outside", figures.TRUTH)):
    group = [one for one in entries if one.inside["interval90"] == inside]
    centers = [one.log_error for one in group]
    ends = [tuple(math.log(end / one.actual) for end in one.intervals["interval90"]) for one in group]
    figure.add_scatter(
      x=centers,
      y=[_name(one) for one in group],
      mode="markers",
      name=name,
      marker={"color": color, "size": 9, "symbol": "square"},
      error_x=figures.error_bars(centers, ends),
      hovertemplate="%{y}<br>%{x:.4f}<extra></extra>",
    )
  figure.add_vline(x=0, line={"color": figures.DARK, "dash": "dot"})
  names = [_name(one) for one in reversed(entries)]
  return figure.update_yaxes(type="category", categoryorder="array", categoryarray=names, automargin=True)


def _name(one: Entry) -> str:
  return f"{one.study}, {one.distance:.3g} x"
