"""A data set's address to rows in one JSON Lines file."""
