"""Studies: the names with which config files and scripts describe, run and read a study."""

from bigmodel.designs.branches import Branches
from bigmodel.designs.early_stopping import EarlyStopping
from bigmodel.designs.fractions import Fractions
from bigmodel.designs.grids import Grid, Listed
from bigmodel.designs.halving import Halving, Hyperband
from bigmodel.designs.isoflop import IsoFlop, Scan
from bigmodel.designs.ladder import Ladder
from bigmodel.designs.search import Search
from bigmodel.designs.spaces import Between, Repeated, Space, When, Zipped
from bigmodel.study.description import Study, Target
from bigmodel.study.on_topology import plan_for
from bigmodel.study.prepare import Prepared, prepare
from bigmodel.study.study import make_plan, run_all, run_listed, run_study, run_to_end, work, write_report
from bigmodel.train.configs import default_config, with_overrides
from bigmodel.train.resolution import check, resolve, resolve_for_plan, resolve_without_data
from bigmodel.train.single_run import single_run

__all__ = [
  "Between",
  "Branches",
  "EarlyStopping",
  "Fractions",
  "Grid",
  "Halving",
  "Hyperband",
  "IsoFlop",
  "Ladder",
  "Listed",
  "Prepared",
  "Repeated",
  "Scan",
  "Search",
  "Space",
  "Study",
  "Target",
  "When",
  "Zipped",
  "check",
  "default_config",
  "make_plan",
  "plan_for",
  "prepare",
  "resolve",
  "resolve_for_plan",
  "resolve_without_data",
  "run_all",
  "run_listed",
  "run_study",
  "run_to_end",
  "single_run",
  "with_overrides",
  "work",
  "write_report",
]
