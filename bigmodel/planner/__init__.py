"""Estimates of what a run or a study costs before it starts: time, memory and money."""
