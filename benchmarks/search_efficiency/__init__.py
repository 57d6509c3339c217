"""Compare ways to search: on recorded curves (`--replay`) or by training (`--real`)."""
