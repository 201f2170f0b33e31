"""Random programs, as numbers that `toy_device.run_program` interprets."""

from hypothesis import strategies as st

_kinds = st.sampled_from([7, 3, 3, 3, 0, 2, 1, 4, 5, 6, 7, 7])
"""Mostly generates and ticks."""

operations = st.lists(st.tuples(_kinds, st.integers(0, 200)), min_size=10, max_size=100).map(
    lambda drawn: [(0, 0), (2, 1), (3, 32), *drawn]
)
