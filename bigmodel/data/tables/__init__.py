"""Tables: rows with a target, cleaned by named steps and encoded as numbers.

Steps are applied in the order of `data.steps`; the data card reports how many rows and cells each of them changed.

Steps that look at whole rows come first: `bad_cells` treats texts among numbers as missing values; `duplicates`,
`missing_target` and `missing_rows` drop rows.

Steps that are fitted on training rows only follow: `missing_flags` adds a feature for each column with missing values;
`impute` fills missing numbers with the median, or with `impute:mean` or `impute:zero`; `clip` limits values to 3
interquartile ranges from the quartiles, or to N with `clip:N`; `drop_outliers` leaves rows with such values out of
training; `quantile` replaces numbers by normal scores.

Texts are encoded last. Dates become days, and sines and cosines of the year, week and day.
"""

from bigmodel.data.tables.encoding import OTHER_STEP, Encoded, encode
from bigmodel.data.tables.reading import RawTable, Table, float32_features, read
from bigmodel.data.tables.steps import COLUMN_STEPS, OTHER_STEPS, ROW_STEPS, check_steps
from bigmodel.data.tables.targets import labels, moments

__all__ = [
  "COLUMN_STEPS",
  "OTHER_STEP",
  "OTHER_STEPS",
  "ROW_STEPS",
  "Encoded",
  "RawTable",
  "Table",
  "check_steps",
  "encode",
  "float32_features",
  "labels",
  "moments",
  "read",
]
