"""Files on disk: arrays that processes share, copies of far files, checkpoints, kinds of file systems."""
