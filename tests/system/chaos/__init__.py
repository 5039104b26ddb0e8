"""The chaos run: the real service under load and a seeded schedule of faults, then every row against the model.

model.py    what was sent and acknowledged; the comparison with the tables: pure
load.py     clients that update sessions and tasks, and try again until they are acknowledged
run.py      which fault comes when: pure; and how a run of them goes on
faults.py   the faults, and how each is done to the running service
service.py  the service as scripts/run.sh starts it, seen from outside
report.py   figures -> verdict, text, JSON: pure
__main__.py puts them together; scripts/chaos.sh calls it
"""
