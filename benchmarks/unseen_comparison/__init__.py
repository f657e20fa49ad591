"""The parts of benchmarks/unseen.py: what is run, what a row holds, what the rows have to show."""
