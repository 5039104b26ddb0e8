"""What ingest and flusher must agree on. Opens nothing, starts nothing."""

VERSION = "1.0.0"
