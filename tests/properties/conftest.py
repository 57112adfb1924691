"""Hypothesis settings: the same examples on every run, and no clock (a busy machine is not a failure)."""

from hypothesis import settings

settings.register_profile("axpo", deadline=None, derandomize=True)
settings.load_profile("axpo")
