"""The promoted versions of a model: which one is current, what each came from, and what is kept of them."""
