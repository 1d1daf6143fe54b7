"""The local engine: texts to vectors on this machine."""
