package httptransport

import (
	"net/http"
	"strings"

	"quayscope.example/clair_standin/libindex"
	"quayscope.example/clair_standin/libvuln"
)

// MatcherV1 is the matcher's part of the API.
type MatcherV1 struct {
	index           *libindex.Libindex
	vulnerabilities *libvuln.Libvuln
}

// NewMatcherV1 adds the matcher to the API.
func NewMatcherV1(api *http.ServeMux, index *libindex.Libindex, vulnerabilities *libvuln.Libvuln) {
	h := &MatcherV1{index, vulnerabilities}
	api.HandleFunc(vulnerabilityReportPath, h.vulnerabilityReport)
}

func (h *MatcherV1) vulnerabilityReport(w http.ResponseWriter, r *http.Request) {
	report, err := h.index.IndexReport(r.Context(), strings.TrimPrefix(r.URL.Path, vulnerabilityReportPath))
	if err == nil && report == nil {
		http.Error(w, "no such report", http.StatusNotFound)
		return
	}
	if err != nil {
		answer(w, 0, nil, err)
		return
	}
	found, err := h.vulnerabilities.Scan(r.Context(), report)
	answer(w, http.StatusOK, found, err)
}
