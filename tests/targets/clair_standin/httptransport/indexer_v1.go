// Package httptransport serves the API.
package httptransport

import (
	"encoding/json"
	"net/http"
	"strings"

	"quayscope.example/clair_standin/indexer"
	"quayscope.example/clair_standin/libindex"
)

const (
	indexReportPath         = "/indexer/api/v1/index_report"
	vulnerabilityReportPath = "/matcher/api/v1/vulnerability_report/"
)

// IndexerV1 is the indexer's part of the API.
type IndexerV1 struct{ index *libindex.Libindex }

// NewIndexerV1 adds the indexer to the API.
func NewIndexerV1(api *http.ServeMux, index *libindex.Libindex) {
	h := &IndexerV1{index}
	api.HandleFunc(indexReportPath, h.indexReport)
	api.HandleFunc(indexReportPath+"/", h.indexReportOne)
}

func (h *IndexerV1) indexReport(w http.ResponseWriter, r *http.Request) {
	manifest := &indexer.Manifest{}
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(manifest) != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	report, err := h.index.Index(r.Context(), manifest)
	answer(w, http.StatusCreated, report, err)
}

func (h *IndexerV1) indexReportOne(w http.ResponseWriter, r *http.Request) {
	hash := strings.TrimPrefix(r.URL.Path, indexReportPath+"/")
	if r.Method == http.MethodDelete {
		if err := h.index.DeleteManifests(r.Context(), hash); err != nil {
			answer(w, 0, nil, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	report, err := h.index.IndexReport(r.Context(), hash)
	if err == nil && report == nil {
		http.Error(w, "no such report", http.StatusNotFound)
		return
	}
	answer(w, http.StatusOK, report, err)
}

func answer(w http.ResponseWriter, status int, body any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
