"""Control of sidecars, and captures: `profile now`.

In the order of reading: `hub` holds the streams that sidecars opened (`service` is their gRPC border),
`request` reads what is asked for, `captures` fans it out and gathers the parts, `kept` holds results on disk,
`http` and `pprof` are the doors.
"""
