"""Designs: each defines the set of runs of a study."""
