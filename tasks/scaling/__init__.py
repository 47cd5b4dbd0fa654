"""Scaling laws: from measurements (parameters, tokens, loss) to fits with intervals, and from a fit to a budget.

Pure NumPy and SciPy, no torch: `points` reads, `newton` minimises, a file for each form, `report` puts them together.
"""
