"""Training and inference throughput."""
