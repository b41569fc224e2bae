"""CA-HQP teacher adaptation."""
