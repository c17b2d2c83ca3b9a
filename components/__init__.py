"""One file a step: each turns artifacts and parameters into one call of the library."""
