"""Fuzzers: arbitrary input to everything that reads what others wrote. `./scripts/fuzz.sh`, in short in the suite."""
