"""What ingest and flusher must agree on. Opens nothing, starts nothing."""

VERSION = "2.0.0"
