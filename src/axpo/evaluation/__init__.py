"""Held-out evaluation: unbiased estimators, intervals clustered by question. Submodules are imported by name."""
