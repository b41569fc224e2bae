"""Edge packages: export, check against PyTorch, and inference without torch."""
