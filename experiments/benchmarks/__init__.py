"""Benchmarks: speed, memory and cost, against alternatives and against hardware limits."""
