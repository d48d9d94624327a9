"""Checkpoint files, ours and others': recognised by content, read without executing anything, written back."""
