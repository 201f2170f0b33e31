"""Merge sort by a tree of reasoning threads: a second task, to show what a task of one's own needs."""
