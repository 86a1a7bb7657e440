"""A run: its recipe checked, its cost planned, its iterations gone through, its directory.

The inside of a stage is in `topr.stages`. Nothing is imported here: checks start without torch.
"""
