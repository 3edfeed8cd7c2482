"""Which layout: what blocks cost, how many of each fit a budget, and in which order."""
