"""The demo and its results."""
