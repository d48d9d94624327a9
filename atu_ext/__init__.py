"""atu-ext."""
