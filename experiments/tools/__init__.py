"""Shared tools: studies and their execution, result files, claims, figures and reports."""
