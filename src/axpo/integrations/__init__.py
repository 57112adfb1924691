"""Bridges to other people's programs: the only files that import them."""
