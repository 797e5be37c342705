"""Weights of other libraries: their names and layouts, translated."""
