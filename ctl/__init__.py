"""The operator's command line: looks at the service from outside, and changes nothing that was not asked for.

`./scripts/ctl.sh`, or `python -m ctl`. Nothing imports it; of the flusher it uses what reads files and the store.
"""
