package clients_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// s3Store is as much of S3 as the tests need: objects of one bucket, parts,
// ranges, and bodies in aws-chunked encoding with a checksum behind them.
type s3Store struct {
	// first sees each request before the store does, and answers it itself if
	// it returns true. nil: none. Set before the store serves.
	first func(w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex // guards all below
	objects map[string][]byte
	parts   map[int][]byte // of the one upload that is under way
	expects int            // requests with Expect: 100-continue
}

func (s *s3Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.first != nil && s.first(w, r) {
		return
	}
	key, query := strings.TrimPrefix(r.URL.Path, "/bucket/"), r.URL.Query()
	var body []byte
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		var err error
		if body, err = s3Body(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Expect") != "" {
		s.expects++
	}
	switch {
	case r.Method == http.MethodPost && query.Has("uploads"):
		s.parts = map[int][]byte{}
		_, _ = fmt.Fprintf(w, "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>%s</Key>"+
			"<UploadId>1</UploadId></InitiateMultipartUploadResult>", key)
	case r.Method == http.MethodPost:
		s.completeLocked(w, key, body)
	case r.Method == http.MethodPut && query.Has("partNumber"):
		n, _ := strconv.Atoi(query.Get("partNumber"))
		s.parts[n] = body
		w.Header().Set("Etag", fmt.Sprintf(`"part-%d"`, n))
	case r.Method == http.MethodPut:
		s.putLocked(key, body)
		w.Header().Set("Etag", `"whole"`)
	case r.Method == http.MethodDelete:
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case query.Has("list-type"):
		s.listLocked(w, query.Get("prefix"))
	default:
		s.getLocked(w, r, key)
	}
}

func (s *s3Store) putLocked(key string, p []byte) {
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[key] = p
}

func (s *s3Store) completeLocked(w http.ResponseWriter, key string, body []byte) {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &list); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var whole []byte
	for _, p := range list.Part {
		whole = append(whole, s.parts[p.PartNumber]...)
	}
	s.putLocked(key, whole)
	_, _ = fmt.Fprintf(w, "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>%s</Key>"+
		"<ETag>whole</ETag></CompleteMultipartUploadResult>", key)
}

func (s *s3Store) listLocked(w http.ResponseWriter, prefix string) {
	var b strings.Builder
	n := 0
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(key, prefix) {
			n++
			fmt.Fprintf(&b, "<Contents><Key>%s</Key><Size>%d</Size></Contents>", key, len(s.objects[key]))
		}
	}
	_, _ = fmt.Fprintf(w, "<ListBucketResult><Name>bucket</Name><KeyCount>%d</KeyCount>"+
		"<IsTruncated>false</IsTruncated>%s</ListBucketResult>", n, b.String())
}

func (s *s3Store) getLocked(w http.ResponseWriter, r *http.Request, key string) {
	p, ok := s.objects[key]
	if !ok {
		s3Error(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	// The lock is not held while the client takes its time.
	s.mu.Unlock()
	defer s.mu.Lock()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
}

func (s *s3Store) get(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[key]
}

func s3Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as told</Message></Error>", code)
}

// s3Body reads a body, and checks what stands behind it if it is aws-chunked.
func s3Body(r *http.Request) ([]byte, error) {
	if !strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") {
		return io.ReadAll(r.Body)
	}
	in := bufio.NewReader(r.Body)
	body, err := io.ReadAll(httputil.NewChunkedReader(in))
	if err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	sum := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body))
	want := "x-amz-checksum-crc32:" + base64.StdEncoding.EncodeToString(sum)
	if got := strings.TrimSpace(string(rest)); cmp.Or(got, want) != want {
		return nil, errors.New("the trailer is " + got + ", want " + want)
	}
	if n, _ := strconv.Atoi(r.Header.Get("X-Amz-Decoded-Content-Length")); n != len(body) {
		return nil, fmt.Errorf("%d bytes, want %d", len(body), n)
	}
	return body, nil
}
