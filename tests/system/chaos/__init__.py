"""The chaos run: the real service under load and a seeded schedule of faults, then every row against the model.

model.py      what was sent and acknowledged; the comparison with the tables: pure
load.py       clients that update sessions and tasks, and try again until they are acknowledged
run.py        which fault comes when: pure; and how a run of them goes on
faults.py     the faults by name, and how each is done and undone
nodes.py      nodes of the service and HAProxy, each started as in production
databases.py  the engines, and what their servers hold
same.py       the same records through one, two and three nodes
report.py     figures -> verdict, text: pure
__main__.py   puts them together; scripts/chaos.sh calls it
"""
