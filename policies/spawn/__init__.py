"""Spawn policies: which requested children run, and with what."""
