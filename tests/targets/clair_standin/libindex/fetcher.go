package libindex

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"

	"quayscope.example/clair_standin/indexer"
)

// RemoteFetchArena fetches layers.
type RemoteFetchArena struct{}

// Realize fetches all of the layers.
func (a *RemoteFetchArena) Realize(ctx context.Context, layers []*indexer.Layer) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, layer := range layers {
		group.Go(a.fetchInto(ctx, layer))
	}
	return group.Wait()
}

func (a *RemoteFetchArena) fetchInto(ctx context.Context, layer *indexer.Layer) func() error {
	return func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, layer.URI, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("layer %s: %s", layer.Hash, response.Status)
		}
		sum := sha256.New()
		unzipped, err := gzip.NewReader(io.TeeReader(response.Body, sum))
		if err != nil {
			return err
		}
		var content bytes.Buffer
		if _, err := io.Copy(&content, unzipped); err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != layer.Hash {
			return fmt.Errorf("layer %s has the digest %s", layer.Hash, got)
		}
		layer.Content = content.Bytes()
		return nil
	}
}
