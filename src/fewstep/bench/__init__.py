"""Benchmarks that a user can run: `fewstep bench samplers`."""
