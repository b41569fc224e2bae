"""Visual prompts, which are part of a model file."""
