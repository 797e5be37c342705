"""`python -m bigmodel.cli` runs the command."""

import sys

from bigmodel.cli import main

if __name__ == "__main__":
  sys.exit(main.main())
