"""Runs: one config, one folder, from loading to outputs."""
