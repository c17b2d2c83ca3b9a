"""What a training run will need, in memory and time, before it starts."""
