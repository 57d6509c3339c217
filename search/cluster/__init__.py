"""Studies on a cluster, from a laptop: the connection, jobs, what is sent, how far they are."""
