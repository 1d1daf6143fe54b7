"""Bad days on purpose: the fake cloud's faults, in front of and behind a real server."""
