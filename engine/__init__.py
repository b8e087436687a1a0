"""The merge on one machine.

A recipe names models and a method; a plan says what becomes of every tensor; a run streams windows from storage through
kernels that fold them, into an output that becomes visible last. Imports run down this list from the last line to the
first:

storage/  where bytes lie, and how files appear whole or not at all
kernels/  arithmetic on a tile, written twice, equal bit for bit
methods/  what a merge method is, a function that makes stages, and the formulas behind them
recipe/   YAML becomes one frozen recipe, or one error with every line that is wrong
models/   a checkpoint at a URL as the merge sees it, from headers alone
plan/     what becomes of every tensor, which bytes it takes, and which files come of it; pure but for `inputs`
fold/     one tensor, in passes over its windows, from task vectors to masks to output bytes
output/   what becomes visible, in which order, and whether it is still what was written
run/      one process brings plans to their manifests within a memory limit
"""
