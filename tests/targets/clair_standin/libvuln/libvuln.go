// Package libvuln matches index reports with known vulnerabilities.
package libvuln

import (
	"context"

	"quayscope.example/clair_standin/datastore/postgres"
	"quayscope.example/clair_standin/internal/matcher"
)

// Libvuln is the matcher as the transport sees it.
type Libvuln struct{ store *postgres.MatcherStore }

// New returns a matcher.
func New(_ context.Context, store *postgres.MatcherStore) (*Libvuln, error) {
	return &Libvuln{store}, nil
}

// Scan returns a report's vulnerabilities, by package.
func (l *Libvuln) Scan(ctx context.Context, report *postgres.Report) (map[string][]string, error) {
	return matcher.EnrichedMatch(ctx, report, l.store)
}
