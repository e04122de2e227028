// A service that stands for Clair in Quayscope's tests: the same endpoints, database driver, tracing and
// introspection, and functions whose packages and names end as Clair's do, so that one table of markers
// (sidecar/quayscope/sidecar/golang/clair_operations.txt) names the operations of both. None of its code is
// Clair's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"

	"quayscope.example/clair_standin/datastore/postgres"
	"quayscope.example/clair_standin/httptransport"
	"quayscope.example/clair_standin/introspection"
	"quayscope.example/clair_standin/libindex"
	"quayscope.example/clair_standin/libvuln"
)

func main() {
	dsn := flag.String("dsn", "", "connection string of the database")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *dsn); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context, dsn string) error {
	// As Clair sets them.
	runtime.SetMutexProfileFraction(10)
	runtime.SetBlockProfileRate(1000)
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return err
		}
		provider := trace.NewTracerProvider(trace.WithBatcher(exporter))
		otel.SetTracerProvider(provider)
		defer func() { _ = provider.Shutdown(context.Background()) }()
	}
	pool, err := postgres.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	index, err := libindex.New(ctx, postgres.NewIndexerStore(pool))
	if err != nil {
		return err
	}
	vulnerabilities, err := libvuln.New(ctx, postgres.NewMatcherStore(pool))
	if err != nil {
		return err
	}
	api := http.NewServeMux()
	httptransport.NewIndexerV1(api, index)
	httptransport.NewMatcherV1(api, index, vulnerabilities)
	// Ports of the kernel's choice, said on standard output: tests run side by side.
	ports := map[string]int{}
	failed := make(chan error, 2)
	for name, handler := range map[string]http.Handler{
		"http":          otelhttp.NewHandler(api, "clair"),
		"introspection": introspection.New(),
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		ports[name] = listener.Addr().(*net.TCPAddr).Port
		server := &http.Server{Handler: handler}
		defer server.Close()
		go func() { failed <- server.Serve(listener) }()
	}
	if err := json.NewEncoder(os.Stdout).Encode(ports); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return errors.Join(errors.New("server ended"), err)
	}
}
