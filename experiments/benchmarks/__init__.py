"""What experiments/benchmark.py measures: workloads, their peers, and how they are timed."""
