"""Sources of examples, a file each; see `bigmodel/data/sources.py`."""
