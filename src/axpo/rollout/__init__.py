"""Runs dialogues between policy and tools, token by token."""
