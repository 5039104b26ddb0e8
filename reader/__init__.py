"""The read side: gives back what was written. Its own process, connections and database user; it never writes."""
