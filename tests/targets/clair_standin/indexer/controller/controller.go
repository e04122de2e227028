// Package controller takes a manifest through its states.
package controller

import (
	"context"

	"quayscope.example/clair_standin/datastore/postgres"
	"quayscope.example/clair_standin/indexer"
)

// Fetcher brings the layers' content.
type Fetcher interface {
	Realize(ctx context.Context, layers []*indexer.Layer) error
}

// Controller indexes one manifest.
type Controller struct {
	store    *postgres.IndexerStore
	fetcher  Fetcher
	manifest *indexer.Manifest
	report   *postgres.Report
}

type state func(context.Context, *Controller) (state, error)

// New returns a controller.
func New(store *postgres.IndexerStore, fetcher Fetcher) *Controller {
	return &Controller{store: store, fetcher: fetcher}
}

// Index returns the manifest's report.
func (s *Controller) Index(ctx context.Context, manifest *indexer.Manifest) (*postgres.Report, error) {
	s.manifest = manifest
	s.report = &postgres.Report{Hash: manifest.Hash, State: "CheckManifest"}
	return s.report, s.run(ctx)
}

func (s *Controller) run(ctx context.Context) error {
	var err error
	for next := state(fetchLayers); next != nil && err == nil; {
		next, err = next(ctx, s)
	}
	return err
}

func fetchLayers(ctx context.Context, s *Controller) (state, error) {
	return scanLayers, s.fetcher.Realize(ctx, s.manifest.Layers)
}

func scanLayers(ctx context.Context, s *Controller) (state, error) {
	return coalesce, indexer.NewLayerScanner(s.store).Scan(ctx, s.manifest.Layers)
}

func coalesce(_ context.Context, s *Controller) (state, error) {
	seen := map[string]bool{}
	for _, layer := range s.manifest.Layers {
		for _, found := range layer.Packages {
			if !seen[found.Name] {
				seen[found.Name] = true
				s.report.Packages = append(s.report.Packages, found)
			}
		}
	}
	return indexFinished, nil
}

func indexFinished(ctx context.Context, s *Controller) (state, error) {
	s.report.State = "IndexFinished"
	return nil, s.store.SetIndexReport(ctx, s.report)
}
