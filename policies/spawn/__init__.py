"""Spawn policies: which requested children run, and which of several answers is taken."""
