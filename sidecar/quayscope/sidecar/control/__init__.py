"""The control stream to the collector, and what the collector asks for over it: captures and rates.

`stream` keeps the connection, `offset` knows the collector's clock, `commands` does what is asked, `captures`
runs captures with what each kind of target needs: `agents`, `pyspy`, `perf`, `database`, `golang`, `memory`.
"""
