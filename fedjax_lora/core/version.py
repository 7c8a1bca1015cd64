"""The version of the package; written into every run folder."""

__version__ = "0.3.0"

BEFORE_0_3 = (None, "0.1.0", "0.2.0")
"""Earlier versions as a record names them; the config of a run of version 0.1 names none."""
