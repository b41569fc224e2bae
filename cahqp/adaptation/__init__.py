"""CA-HQP around a teacher: alignment of domain queries and instances, selection of pseudo-labels."""
