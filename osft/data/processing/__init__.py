"""Valid rows to token ids and labels, split into rows to train on and held-out rows."""
