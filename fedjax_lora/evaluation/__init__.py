"""Evaluation: metrics, task types, predictions and generation."""
