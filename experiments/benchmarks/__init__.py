"""The workloads of experiments/benchmark.py, the other packages, and the timing."""
