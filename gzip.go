package keepalive

import (
	"bufio"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// unpack makes a gzip response that we asked for look as if it had never been
// packed.
func unpack(resp *http.Response) {
	coding := resp.Header["Content-Encoding"] // the parser made it canonical
	if len(coding) == 0 || !strings.EqualFold(coding[0], "gzip") {
		return
	}
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
	resp.ContentLength = -1
	resp.Uncompressed = true
	resp.Body = &gzipBody{src: resp.Body}
}

// unzipper is a gzip reader with its buffer; pooled while nobody uses it.
type unzipper struct {
	buf *bufio.Reader
	zr  gzip.Reader
}

var unzippers = sync.Pool{ //nolint:gochecknoglobals // shared by nature
	New: func() any { return &unzipper{buf: bufio.NewReader(nil)} },
}

// gzipBody unpacks src. Its end is the end of src, so that the connection is
// given back with it. Read and Close may be called at the same time.
type gzipBody struct {
	src io.ReadCloser

	closed atomic.Bool

	mu  sync.Mutex // held by one Read
	z   *unzipper  // from the first Read until the end
	err error
}

func (g *gzipBody) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if g.err != nil {
		return 0, g.err
	}
	if g.z == nil {
		z, _ := unzippers.Get().(*unzipper)
		z.buf.Reset(g.src)
		if err := z.zr.Reset(z.buf); err != nil {
			return 0, g.end(z, err)
		}
		g.z = z
	}
	n, err := g.z.zr.Read(p)
	if err != nil {
		err = g.end(g.z, err)
	}
	return n, err
}

// end gives the reader back to its pool, once, and keeps the error.
func (g *gzipBody) end(z *unzipper, err error) error {
	z.buf.Reset(nil)
	unzippers.Put(z)
	g.z, g.err = nil, err
	return err
}

// Close closes the packed body. A Read under way ends with its error.
func (g *gzipBody) Close() error {
	g.closed.Store(true)
	return g.src.Close()
}
