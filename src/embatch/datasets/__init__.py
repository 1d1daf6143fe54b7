"""From any input to Arrow record batches, and from vectors to output parts, in constant memory."""
