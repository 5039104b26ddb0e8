"""The benchmark: contenders side by side on one machine, in one run, and the limits they are held against.

`./scripts/bench.sh` runs it; docs/PERFORMANCE.md says what each figure means. Nothing here tunes the service: it is
started with its own defaults, as real processes, against a real MariaDB that is the same for all.
"""
