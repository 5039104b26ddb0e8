"""Slow and broken clients in numbers, beside a good one.

clients.py  a process of its own that is a crowd of them
good.py     the good client, and what it notices
__main__.py the measured run: its figures stand in docs/RELIABILITY.md
"""
