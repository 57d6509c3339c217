"""One run of a study, in the process that the user starts: Ray Tune, its trials, and what they report."""
