"""Checkpoints of any size that nobody stores: made from a seed while a client reads them from an S3 server here."""
