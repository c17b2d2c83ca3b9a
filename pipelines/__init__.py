"""The pipelines: which step feeds which."""
