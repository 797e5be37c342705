"""Designs: which runs a study consists of."""
