"""The training loop and what it needs: batches, processes, metrics, checkpoints."""
