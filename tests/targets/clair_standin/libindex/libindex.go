// Package libindex indexes manifests: fetch the layers, scan them, store what was found.
package libindex

import (
	"context"

	"quayscope.example/clair_standin/datastore/postgres"
	"quayscope.example/clair_standin/indexer"
	"quayscope.example/clair_standin/indexer/controller"
)

// Libindex is the indexer as the transport sees it.
type Libindex struct {
	store *postgres.IndexerStore
	arena *RemoteFetchArena
}

// New returns an indexer.
func New(_ context.Context, store *postgres.IndexerStore) (*Libindex, error) {
	return &Libindex{store: store, arena: &RemoteFetchArena{}}, nil
}

// Index returns the report of a manifest.
func (l *Libindex) Index(ctx context.Context, manifest *indexer.Manifest) (*postgres.Report, error) {
	return controller.New(l.store, l.arena).Index(ctx, manifest)
}

// IndexReport returns a stored report; nil when there is none.
func (l *Libindex) IndexReport(ctx context.Context, hash string) (*postgres.Report, error) {
	return l.store.IndexReport(ctx, hash)
}

// DeleteManifests forgets a manifest.
func (l *Libindex) DeleteManifests(ctx context.Context, hash string) error {
	return l.store.DeleteManifests(ctx, hash)
}
