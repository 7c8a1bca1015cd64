"""Reproductions of published results, claim by claim."""
