"""How the drawn tests run: without a deadline, because a busy machine is no defect."""

from hypothesis import settings

settings.register_profile("here", deadline=None, print_blob=True)
settings.load_profile("here")
