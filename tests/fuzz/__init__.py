"""Random programs over the public API, and faults at every place: `python -m tests.fuzz --minutes 60`."""
