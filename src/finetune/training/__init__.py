"""The training loop and what it uses: optimiser, losses, metrics, checkpoints of a trial."""
