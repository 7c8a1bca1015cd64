"""Experiments: each folder answers one question, with its configs, results and figures."""
