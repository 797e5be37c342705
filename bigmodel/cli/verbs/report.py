"""Write a study's report.html and report.json again."""

import argparse
from pathlib import Path

from bigmodel.cli import options
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

EXAMPLES = (
  "bigmodel report --workdir=runs/quickstart",
  "bigmodel report --workdir=runs/quickstart --table=runs.csv",
  "bigmodel report --workdir=runs/quickstart --figures=pdf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument("--table", default="", metavar="FILE", help="also write a table of all runs: .csv or .parquet")
  parser.add_argument("--figures", choices=("pdf", "svg"), help="also save every figure in this format under figures/")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  from bigmodel import study
  from bigmodel.report import page

  if not (Path(arguments.workdir) / "study.json").exists():
    raise UserError(f"--workdir: {arguments.workdir} holds no study (no study.json)")
  if arguments.table and not arguments.table.endswith((".csv", ".parquet")):
    raise UserError(f"--table: {arguments.table} ends in neither .csv nor .parquet")
  facts = study.write_report(arguments.workdir, arguments.figures)
  if arguments.table:
    page.write_table(arguments.table, facts)
  output.say(f"report: {Path(arguments.workdir) / 'report.html'}")
  return facts
