"""Which directions of a weight are protected, what may move, and how a model takes that in."""
