"""Inference engines, one file each. All satisfy `axpo.protocols.InferenceEngine`."""
