"""Demonstrations, published tables, and the trainings that made the bundled files."""
