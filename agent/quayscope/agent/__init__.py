"""What lives in a worker: CPU and stall profiles per request, counts, spans. Standard library only."""
