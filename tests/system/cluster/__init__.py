"""Three nodes of the service behind HAProxy, on a Galera cluster of three: what must hold beyond one machine.

nodes.py    the service's nodes and HAProxy, each started as in production
tables.py   what the database's nodes hold
same.py     the same records through one, two and three nodes
drain.py    a node is drained and restarted while requests go on
faults.py   what is done to service nodes, database nodes and links
__main__.py puts them together; scripts/chaos.sh --nodes 3 calls it
Load, model and report are those of the chaos run of one service (tests/system/chaos).
"""
