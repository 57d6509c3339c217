"""Files: arrays that processes share, copies of far files, checkpoints, network file systems."""
