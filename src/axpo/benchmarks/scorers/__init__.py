"""Scorers of the benchmarks: a question and a final text in, a verdict out."""
