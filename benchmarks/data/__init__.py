"""The data steps, measured beside what they are made of and beside a peer."""
