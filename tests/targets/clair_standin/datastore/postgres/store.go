// Package postgres keeps layers, packages and reports, as Clair does, through pgx.
package postgres

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const schema = `
CREATE TABLE IF NOT EXISTS layer (hash text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS package (layer text, name text, version text, PRIMARY KEY (layer, name));
CREATE TABLE IF NOT EXISTS indexreport (hash text PRIMARY KEY, report jsonb);
CREATE TABLE IF NOT EXISTS vuln (name text, below text, title text);
CREATE INDEX IF NOT EXISTS vuln_name ON vuln (name);
INSERT INTO vuln SELECT 'package-' || g, g % 7 || '.5', 'CVE-' || g FROM generate_series(1, 2000) g
 WHERE NOT EXISTS (SELECT 1 FROM vuln);`

// Package is one found in a layer.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Report is what an index gave.
type Report struct {
	Hash     string    `json:"manifest_hash"`
	State    string    `json:"state"`
	Packages []Package `json:"packages"`
}

// Connect opens the pool and makes the tables.
func Connect(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, schema); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// IndexerStore is what the indexer keeps.
type IndexerStore struct{ pool *pgxpool.Pool }

// NewIndexerStore returns a store on the pool.
func NewIndexerStore(pool *pgxpool.Pool) *IndexerStore { return &IndexerStore{pool} }

// LayerScanned says whether the layer was.
func (s *IndexerStore) LayerScanned(ctx context.Context, hash string) (found bool, err error) {
	err = s.pool.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM layer WHERE hash = $1)", hash).Scan(&found)
	return found, err
}

// IndexPackages keeps a layer's packages.
func (s *IndexerStore) IndexPackages(ctx context.Context, hash string, packages []Package) error {
	batch := &pgx.Batch{}
	for _, p := range packages {
		batch.Queue("INSERT INTO package VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", hash, p.Name, p.Version)
	}
	batch.Queue("INSERT INTO layer VALUES ($1) ON CONFLICT DO NOTHING", hash)
	return s.pool.SendBatch(ctx, batch).Close()
}

// SetIndexReport keeps a report.
func (s *IndexerStore) SetIndexReport(ctx context.Context, report *Report) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, "INSERT INTO indexreport VALUES ($1, $2) ON CONFLICT (hash) DO UPDATE SET report = $2", report.Hash, body)
	return err
}

// IndexReport returns a report; nil when there is none.
func (s *IndexerStore) IndexReport(ctx context.Context, hash string) (*Report, error) {
	var body []byte
	err := s.pool.QueryRow(ctx, "SELECT report FROM indexreport WHERE hash = $1", hash).Scan(&body)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	report := &Report{}
	return report, json.Unmarshal(body, report)
}

// DeleteManifests removes a report.
func (s *IndexerStore) DeleteManifests(ctx context.Context, hash string) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM indexreport WHERE hash = $1", hash)
	return err
}

// MatcherStore is what the matcher looks into.
type MatcherStore struct{ pool *pgxpool.Pool }

// NewMatcherStore returns a store on the pool.
func NewMatcherStore(pool *pgxpool.Pool) *MatcherStore { return &MatcherStore{pool} }

// Get returns the vulnerabilities known of a package.
func (s *MatcherStore) Get(ctx context.Context, name string) (map[string]string, error) {
	rows, err := s.pool.Query(ctx, "SELECT title, below FROM vuln WHERE name = $1", name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]string{}
	for rows.Next() {
		var title, below string
		if err := rows.Scan(&title, &below); err != nil {
			return nil, err
		}
		found[title] = below
	}
	return found, rows.Err()
}
