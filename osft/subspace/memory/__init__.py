"""What a chain of runs must keep: the inputs' covariances of everything learnt, without any data."""
