"""The benchmarks of the paper: loaders of their published files, scorers of final texts. Imported by name."""
