"""What the outputs of a method that writes one per task may be called."""

TASK_NAME = r"^\w[\w.-]{0,99}$"
UNIFIED = "unified"
"""The folder of the unified task vector of EMR-Merging, which no task may have."""
