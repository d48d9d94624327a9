"""Generators and discriminators that atu builds itself; `registry` knows them by the names that checkpoints use."""
