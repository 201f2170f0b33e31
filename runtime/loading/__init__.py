"""From checkpoints, servers and traces to devices."""
