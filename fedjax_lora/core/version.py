"""The version of the package; written into every run folder."""

__version__ = "0.3.0"
