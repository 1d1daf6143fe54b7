"""`embatch serve`: the Gemini protocol over the batch service and the local engine."""
