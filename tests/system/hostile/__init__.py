"""Slow and broken clients in numbers, beside a good one.

clients.py  a process of its own that is a crowd of them
heavy.py    requests that cost the service much
beside.py   the good client, and what it notices
__main__.py the measured runs of both
"""
