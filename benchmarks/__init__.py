"""What the engine costs and gains, as ratios of two sides measured in turn in one run: `python -m benchmarks`."""
