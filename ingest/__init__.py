"""HTTP in, frames out: parse, validate, forward. Holds no data and no database connection."""
