"""LightningModules, their callbacks, and the files that a fit writes."""
