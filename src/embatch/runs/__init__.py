"""The heart: planning, the steps of a batch, collection, and the end of a run."""
