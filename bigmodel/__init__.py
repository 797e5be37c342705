"""bigmodel: scaling experiments in JAX, from one config file to a decision."""

__version__ = "0.1.0"
