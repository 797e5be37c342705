"""Sources of text, a file each; see `bigmodel/data/sources.py`."""
