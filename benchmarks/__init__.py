"""Measurements: how they are made, what they said, and what each was expected to say (README.md)."""
