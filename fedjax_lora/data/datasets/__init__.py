"""Data sets: the registry of tasks, and the readers of their files."""
