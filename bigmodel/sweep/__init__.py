"""Sweeps: designs that make runs, packs of runs that share a program, and the study's folder."""
