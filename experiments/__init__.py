"""Experiments: each folder is one question, its config, its results and its figures."""
