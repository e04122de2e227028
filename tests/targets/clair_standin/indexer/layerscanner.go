// Package indexer scans layers for packages.
package indexer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"

	"golang.org/x/sync/errgroup"

	"quayscope.example/clair_standin/datastore/postgres"
)

// Layer of a manifest; Content is its tar archive once fetched.
type Layer struct {
	Hash     string             `json:"hash"`
	URI      string             `json:"uri"`
	Content  []byte             `json:"-"`
	Packages []postgres.Package `json:"-"`
}

// Manifest of an image.
type Manifest struct {
	Hash   string   `json:"hash"`
	Layers []*Layer `json:"layers"`
}

// LayerScanner finds the packages of layers and stores them.
type LayerScanner struct{ store *postgres.IndexerStore }

// NewLayerScanner returns a scanner.
func NewLayerScanner(store *postgres.IndexerStore) *LayerScanner { return &LayerScanner{store} }

// Scan goes through all layers.
func (ls *LayerScanner) Scan(ctx context.Context, layers []*Layer) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, layer := range layers {
		group.Go(func() error { return ls.scanLayer(ctx, layer) })
	}
	return group.Wait()
}

func (ls *LayerScanner) scanLayer(ctx context.Context, layer *Layer) error {
	if _, err := ls.store.LayerScanned(ctx, layer.Hash); err != nil {
		return err
	}
	var found result
	if err := found.Do(ctx, layer); err != nil {
		return err
	}
	layer.Packages = found.packages
	return found.Store(ctx, ls.store, layer)
}

type result struct{ packages []postgres.Package }

var line = regexp.MustCompile(`^([A-Z][A-Za-z-]*): *(.*)$`)

// Do parses what package managers left in the layer.
func (r *result) Do(_ context.Context, layer *Layer) error {
	archive := tar.NewReader(bytes.NewReader(layer.Content))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(header.Name, "dpkg/status"):
			r.status(archive)
		case strings.HasSuffix(header.Name, "packages.json"):
			var more []postgres.Package
			if err := json.NewDecoder(archive).Decode(&more); err != nil {
				return err
			}
			r.packages = append(r.packages, more...)
		}
	}
}

func (r *result) status(content io.Reader) {
	var current postgres.Package
	for lines := bufio.NewScanner(content); lines.Scan(); {
		match := line.FindStringSubmatch(lines.Text())
		switch {
		case match == nil:
		case match[1] == "Package":
			current = postgres.Package{Name: match[2]}
		case match[1] == "Version":
			current.Version = match[2]
			r.packages = append(r.packages, current)
		}
	}
}

// Store keeps what was found.
func (r *result) Store(ctx context.Context, store *postgres.IndexerStore, layer *Layer) error {
	return store.IndexPackages(ctx, layer.Hash, r.packages)
}
