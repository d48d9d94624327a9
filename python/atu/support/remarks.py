"""Warnings about what a user gave."""

from __future__ import annotations


class InputWarning(UserWarning):
    """Something given looks wrong, though work can go on with it. The text says what to do."""
