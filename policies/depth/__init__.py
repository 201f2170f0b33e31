"""Depth policies: how many iterations of the core block each token gets."""
