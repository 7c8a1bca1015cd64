"""The random federations and oracles of the tests of methods."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "methods"))
