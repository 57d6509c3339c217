"""Studies on a cluster, from a laptop: connection, jobs, upload and status."""
