"""A micro-benchmark for each stage of the stream, by itself: `make bench-micro`. They time, and judge nothing."""
