"""The load driver: fires a workload at a registry at an arrival rate, and measures what came back.

Stages, in order: `workload` (what is sent), `schedule` (when), `client` and `engine` (sending),
`record` (what was seen of each request), `report` (what that amounts to).
"""
