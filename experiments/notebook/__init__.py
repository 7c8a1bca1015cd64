"""The example notebook, and the command that executes it."""
