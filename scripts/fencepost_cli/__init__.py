"""The command line `fencepost`, and the local clusters that it, the tests and the benchmarks run."""
