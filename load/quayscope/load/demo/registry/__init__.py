"""A small container registry on real tables: the application that the demo measures.

It answers a subset of Quay's API under Quay's paths, and the distribution API below `/v2/`, on Flask and
psycopg2 under gunicorn's gevent workers. As in Quay, psycopg2 is not made cooperative: a statement blocks
its whole worker. It knows nothing of any profiler; its weak spots are listed in `weak`, and its own
account of where CPU went, the truth that profiles are held against, is kept by `ledger`.
"""
