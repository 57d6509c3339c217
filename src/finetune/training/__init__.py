"""The training loop and what it uses: optimiser, losses, checkpoints of a trial."""
