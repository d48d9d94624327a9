"""Generators and discriminators that atu builds itself."""
