"""Nyström attention: the matrix of weights by its rows and columns at a few landmarks."""
