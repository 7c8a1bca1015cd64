"""Helpers shared by tests: small problems, oracles and models."""
