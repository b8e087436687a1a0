"""Out-of-core, resumable, deterministic merging of fine-tuned checkpoints."""
