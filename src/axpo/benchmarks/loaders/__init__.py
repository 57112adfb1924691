"""One module a benchmark, each with `load(folder, *, preset, store, limit)`, see `axpo.benchmarks.benchmark.Load`."""
