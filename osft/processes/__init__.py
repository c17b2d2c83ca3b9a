"""The processes of a training run: who starts them, what they agree on, and how they end."""
