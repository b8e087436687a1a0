"""The merge on one machine: from a recipe to a verified checkpoint. Knows nothing of Ray."""
