"""Turning rows into updates: configuration, policy, step, loop, checkpoints."""
