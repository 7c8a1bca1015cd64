"""The commands that use what a run has left behind: one module each, with its options."""
