"""Config files, read strictly: every mistake is reported with its place and its fix."""
