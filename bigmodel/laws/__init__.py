"""Laws: parametric forms of the loss, fitted to records or to a CSV of runs, with uncertainty.

In this room N is the number of parameters, D of tokens and C of FLOPs, as in the papers.
"""
