"""Postgres seen from outside: what its backends run and wait for, and the server's own counters."""
