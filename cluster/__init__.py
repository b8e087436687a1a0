"""The same plan on many machines, and the command line."""
