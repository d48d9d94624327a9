"""Other projects' checkpoints: recognised by content, read without executing anything, written back."""

from .discriminator import fit_discriminator
from .export import FORMATS, export, format_of
from .inspect import inspect_checkpoint
from .load import load_foreign
from .recognise import recognise

__all__ = [
    "FORMATS",
    "export",
    "fit_discriminator",
    "format_of",
    "inspect_checkpoint",
    "load_foreign",
    "recognise",
]
