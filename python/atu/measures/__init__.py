"""Measures of sets of samples: features, Frechet distances, manifolds, shares and their intervals.

None knows what is negative.
"""
