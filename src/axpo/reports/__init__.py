"""Reads run directories, writes pages for people. Imports no torch. Submodules are imported by name."""
