"""Laws: parametric forms of loss, fitted to records of anybody's runs, with uncertainty.

Here N is parameters, D tokens, C FLOPs, as the papers have it.
"""
