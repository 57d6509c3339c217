"""TensorBoard logs of a study: one run for each trial, and one for the whole study.

    <logdir>/0-all-trials/                       the study: progress, cost, best trials, columns of HParams
    <logdir>/0008-fuse-lr.035-mobilenet_v2/      trial 8: scalars of its epochs, hyperparameters, how it ended

The records are written with TensorBoard's own protos, which needs no torch and no threads.
"""

from search.views.tensorboard.board import Board

__all__ = ["Board"]
