"""One script per engine, each runnable in a virtual environment of its own: same arguments in, one JSON line out.

They import nothing of AIRI but the shared `workload` beside them (the AIRI one excepted), so a peer's environment
needs only the peer.
"""
