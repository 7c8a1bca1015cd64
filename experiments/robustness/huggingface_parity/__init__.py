"""Exported models in PyTorch against the same models here, as the README gives it."""
