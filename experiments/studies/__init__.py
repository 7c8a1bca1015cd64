"""Studies: comparisons of methods in settings of this project."""
