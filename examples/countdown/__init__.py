"""Countdown: combine numbers with + - * / to reach a target, searched by a tree of reasoning threads."""
