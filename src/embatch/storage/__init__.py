"""Where files lie, on this machine or in an object store; the only package that imports obstore."""
