"""Detection on frames, and evaluation of model files."""
