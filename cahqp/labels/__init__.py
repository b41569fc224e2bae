"""From scores to files one can trust."""
