"""What benchmarks/structures.py compares, one section a file."""
