"""The command `bigmodel`: `main.py` dispatches, `verbs/` has one file per verb."""
