"""A batch embedding service over an engine, on disk and without HTTP."""
