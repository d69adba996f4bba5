"""Benchmarks: ratios of two ways in one run."""
