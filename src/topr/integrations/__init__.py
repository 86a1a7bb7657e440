"""Objectives of topr inside other people's trainers: `verl` and `trl`, one file each.

Thin: the mathematics is `topr.objectives`, called. Nothing is imported here, so that each file
needs its own peer alone.
"""
