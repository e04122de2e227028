// Package matcher decides which vulnerabilities concern a package.
package matcher

import (
	"context"

	"quayscope.example/clair_standin/datastore/postgres"
)

// EnrichedMatch returns the titles of the vulnerabilities of each package.
func EnrichedMatch(ctx context.Context, report *postgres.Report, store *postgres.MatcherStore) (map[string][]string, error) {
	found := map[string][]string{}
	for _, p := range report.Packages {
		known, err := store.Get(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		for title, below := range known {
			if p.Version < below {
				found[p.Name] = append(found[p.Name], title)
			}
		}
	}
	return found, nil
}
