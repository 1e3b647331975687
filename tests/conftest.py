"""What every test shares."""

from hypothesis import settings

# A deadline for one example measures the machine, which other work shares, and not the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
