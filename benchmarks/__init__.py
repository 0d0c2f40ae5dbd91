"""Measurements of speed, memory and agreement: `python -m benchmarks NAME`; without a name, the list."""
