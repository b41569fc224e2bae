"""Label shards: resumable partial results."""
