"""Demo: models that are trained and merged before one's eyes.

Held by tests/e2e/test_demo.py.
"""
