"""What an extension must keep, as tests that it inherits: one contract for each kind (`docs/extending.md`).

A contract is a class of pytest tests; subclass it in your own tests, under a name that begins with `Test`.
"""
