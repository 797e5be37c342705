"""Conversion of weights and configs from and to other libraries."""
