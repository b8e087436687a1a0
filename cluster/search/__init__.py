"""Search: recipes of a space are merged together, evaluated by a command of the user, and the best is kept."""
