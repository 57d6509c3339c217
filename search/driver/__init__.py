"""The driver, the process that runs a study: its checks, Ray Tune, the trials in Tune and their callback."""
