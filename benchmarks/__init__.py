"""Side-by-side measurements, against peers and against what the work is made of."""
