"""The `stddaq` command."""
