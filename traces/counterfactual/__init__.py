"""What recorded questions would have cost and given under another policy, sampling or checkpoint.

questions.py: the roots of a trace -> asking.py: asked again, recorded -> comparing.py: pairs of trees, and what differs
"""
