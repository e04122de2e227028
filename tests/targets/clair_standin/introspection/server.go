// Package introspection serves what Clair's does: health and profiles, the deltas of godeltaprof among them.
package introspection

import (
	"net/http"
	"net/http/pprof"

	delta "github.com/grafana/pyroscope-go/godeltaprof/http/pprof"
)

// New returns the handler.
func New() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/delta_heap", delta.Heap)
	mux.HandleFunc("/debug/pprof/delta_block", delta.Block)
	mux.HandleFunc("/debug/pprof/delta_mutex", delta.Mutex)
	return mux
}
