"""Foundations without LoRA, models or clients: types, errors, trees, linear algebra, files."""
