package wire

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

const typicalHead = "HTTP/1.1 200 OK\r\n" +
	"Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n" +
	"Content-Type: application/json; charset=utf-8\r\n" +
	"Content-Length: 27\r\n" +
	"Cache-Control: private, max-age=0\r\n" +
	"Server: nginx/1.27.1\r\n" +
	"X-Request-Id: 6f1f2c1e-2b57-4d7a-9d0e-0a9d8a8d3f11\r\n\r\n"

const typicalResponse = typicalHead + `{"status":"ok","count":123}`

func readTypical(src *strings.Reader, body *Body, p []byte) (Head, error) {
	src.Reset(typicalResponse)
	r := GetReader(src)
	h, err := ReadHead(r, http.MethodGet, 1<<20)
	if err == nil {
		body.Reset(r, h, &h.Response.Trailer)
		body.Whole()
		_, err = body.Read(p)
	}
	r.Free()
	return h, err
}

func BenchmarkReadResponse(b *testing.B) {
	src, p := strings.NewReader(""), make([]byte, 512)
	var body Body
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readTypical(src, &body, p); !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
}

func typicalRequest() (*http.Request, *RequestOptions) {
	req, err := http.NewRequest(http.MethodGet, "http://service.example/v1/items?limit=10", http.NoBody)
	if err != nil {
		return nil, nil
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer abcdefghijklmnopqrstuvwxyz")
	req.Header.Set("X-Request-Id", "6f1f2c1e-2b57-4d7a-9d0e-0a9d8a8d3f11")
	return req, &RequestOptions{Host: "service.example", Target: "/v1/items?limit=10", AcceptGzip: true}
}

func BenchmarkAppendRequest(b *testing.B) {
	req, o := typicalRequest()
	dst := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendRequest(dst[:0], req, o)
	}
}

func BenchmarkReadChunked(b *testing.B) {
	data := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("400\r\n"+strings.Repeat("x", 1024)+"\r\n", 256) + "0\r\n\r\n"
	src, p := strings.NewReader(""), make([]byte, 32<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		src.Reset(data)
		r := GetReader(src)
		h, err := ReadHead(r, http.MethodGet, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		var body Body
		body.Reset(r, h, nil)
		for err == nil {
			_, err = body.Read(p)
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		r.Free()
	}
}

// TestAllocations holds the figures that the benchmarks show.
func TestAllocations(t *testing.T) {
	src, p := strings.NewReader(""), make([]byte, 512)
	var body Body
	got := testing.AllocsPerRun(200, func() {
		if _, err := readTypical(src, &body, p); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	// The response, the text of the head, the values, and two for the map.
	if want := 5.0; got > want && !raceEnabled {
		t.Errorf("reading a response: got %v allocations, want at most %v", got, want)
	}

	req, o := typicalRequest()
	for i := range 12 {
		req.Header.Set("X-"+strings.Repeat("A", i+1), "v")
	}
	dst := make([]byte, 0, 4096)
	got = testing.AllocsPerRun(200, func() { dst = AppendRequest(dst[:0], req, o) })
	if got > 0 {
		t.Errorf("writing a request: got %v allocations, want none", got)
	}
	if !bytes.HasSuffix(dst, []byte("Accept-Encoding: gzip\r\n\r\n")) {
		t.Errorf("unexpected end of %q", dst)
	}
}
