"""What a config file may say, read strictly; every mistake is told with its place and its fix."""
