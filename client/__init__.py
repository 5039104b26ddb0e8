"""The client library: one file, which imports nothing of the service."""
