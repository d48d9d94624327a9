"""Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), the default method: both stages and what steers the second."""
