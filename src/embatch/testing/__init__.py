"""Stand-ins that ship with the product: what a test needs instead of a paid service."""
