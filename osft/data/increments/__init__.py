"""Which rows of a data set are new: newer than a time, and not among those of earlier runs."""
