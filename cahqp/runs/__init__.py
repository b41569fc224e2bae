"""Run directories, locks, stages and the executor that runs them."""
