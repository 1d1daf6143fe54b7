"""What all tests share."""

from hypothesis import settings

# A busy machine is no defect: no test is held to a time.
settings.register_profile("embatch", deadline=None)
settings.load_profile("embatch")
