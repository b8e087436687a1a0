"""Reports: what a plan, a merge or a survey says, as text and as JSON.

Held by tests/unit/cluster/reports and tests/e2e.
"""
