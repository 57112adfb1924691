"""What a run leaves behind and what it says about its health. Submodules are imported by name."""
