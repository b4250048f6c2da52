"""Benchmarks: this project and its peers on the same work, in one run. Ratios are what to read; times are noise."""
