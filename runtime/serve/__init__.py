"""A server: an engine behind a port, for clients of the OpenAI API. `python -m runtime.serve CHECKPOINT` runs it."""
