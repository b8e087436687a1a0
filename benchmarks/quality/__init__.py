"""Accuracy of merged models on text tasks: what methods, densities and factors are worth."""
