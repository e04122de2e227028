"""The admission webhook that puts the agent and the sidecar into pods of a Quay deployment.

In the order of a review: `review` reads it, `pods` decides whether and what this pod is, `inject` makes the
pod that is wanted out of the parts in `containers`, `patch` says the difference; `server` serves it over TLS.
"""
