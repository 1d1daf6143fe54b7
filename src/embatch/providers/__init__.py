"""Services that embed batches, behind one port."""
