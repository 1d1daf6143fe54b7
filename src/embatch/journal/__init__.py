"""The journal: the database of runs and batches, and its only writer."""
