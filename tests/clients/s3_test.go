package clients_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"
)

func s3Client(s *subject, srv *httptest.Server) *s3.Client {
	return s3.New(s3.Options{
		Region:       "us-east-1",
		BaseEndpoint: &srv.URL,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider("id", "secret", ""),
		HTTPClient:   s.client,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = 5, time.Millisecond
		}),
	})
}

func put(ctx context.Context, c *s3.Client, key string, body io.Reader) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: &key, Body: body})
	return err
}

func get(ctx context.Context, c *s3.Client, key, span string) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: &key}
	if span != "" {
		in.Range = &span
	}
	out, err := c.GetObject(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.Body, nil
}

func object(t *testing.T, c *s3.Client, key, span string) []byte {
	t.Helper()
	body, err := get(t.Context(), c, key, span)
	require.NoError(t, err)
	defer body.Close()
	p, err := io.ReadAll(body)
	require.NoError(t, err)
	return p
}

// stream hides everything of a reader but Read.
type stream struct{ io.Reader }

func TestS3Objects(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				store := &s3Store{}
				c := s3Client(s, s.serve(t, scheme, store))
				big := noise(6 << 20) // above the SDK's threshold for Expect: 100-continue
				require.NoError(t, put(t.Context(), c, "small", bytes.NewReader([]byte("small one"))))
				require.NoError(t, put(t.Context(), c, "empty", bytes.NewReader(nil)))
				require.NoError(t, put(t.Context(), c, "big", bytes.NewReader(big)))
				require.Equal(t, 1, store.expects)
				require.Equal(t, "small one", string(object(t, c, "small", "")))
				require.Empty(t, object(t, c, "empty", ""))
				require.True(t, bytes.Equal(big, object(t, c, "big", "")))
				require.True(t, bytes.Equal(big[1000:5000], object(t, c, "big", "bytes=1000-4999")))

				list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("bucket")})
				require.NoError(t, err)
				require.Len(t, list.Contents, 3)
				head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("bucket"), Key: aws.String("big")})
				require.NoError(t, err)
				require.EqualValues(t, len(big), *head.ContentLength)
				_, err = c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("bucket"), Key: aws.String("big")})
				require.NoError(t, err)
				_, err = get(t.Context(), c, "big", "")
				var missing *types.NoSuchKey
				require.ErrorAs(t, err, &missing)
			})
		})
	}
}

// TestS3MultipartStream uploads what cannot be rewound, in parts, some at the
// same time.
func TestS3MultipartStream(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			both(t, -1, func(t *testing.T, s *subject) {
				store := &s3Store{}
				m := transfermanager.New(s3Client(s, s.serve(t, scheme, store)), func(o *transfermanager.Options) {
					o.PartSizeBytes, o.Concurrency = 5<<20, 2
				})
				data := noise(11 << 20)
				_, err := m.UploadObject(t.Context(), &transfermanager.UploadObjectInput{
					Bucket: aws.String("bucket"), Key: aws.String("parts"), Body: stream{bytes.NewReader(data)},
				})
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, store.get("parts")))
				require.LessOrEqual(t, s.accepted.Load(), int64(2), "connections for two parts at a time")

				out, err := m.GetObject(t.Context(), &transfermanager.GetObjectInput{
					Bucket: aws.String("bucket"), Key: aws.String("parts"),
				})
				require.NoError(t, err)
				back, err := io.ReadAll(out.Body)
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, back))
			})
		})
	}
}

// TestS3PutStream: a body of unknown origin goes out in aws-chunked encoding
// with its checksum behind it. The SDK does that over TLS only.
func TestS3PutStream(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		store := &s3Store{}
		c := s3Client(s, s.serve(t, "https", store))
		data := noise(3 << 20)
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: aws.String("bucket"), Key: aws.String("stream"),
			Body: stream{bytes.NewReader(data)}, ContentLength: aws.Int64(int64(len(data))),
		})
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, store.get("stream")))
	})
}

// TestS3EarlyClose: a large object that is closed early costs its connection,
// a small one does not.
func TestS3EarlyClose(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		store := &s3Store{objects: map[string][]byte{"large": noise(32 << 20), "small": noise(30_000)}}
		c := s3Client(s, s.serve(t, "http", store))
		for _, key := range []string{"large", "small", "small"} {
			body, err := get(t.Context(), c, key, "")
			require.NoError(t, err)
			_, err = io.ReadFull(body, make([]byte, 1000))
			require.NoError(t, err)
			require.NoError(t, body.Close())
			s.quiet(t)
		}
		require.Len(t, object(t, c, "small", ""), 30_000)
	})
}

// TestS3Retries: the SDK sends a request again after 500 and 503. A server
// that refuses without reading the body ends the connection.
func TestS3Retries(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		size     int
		readBody bool
		conns    int
	}{
		{"the body is read", 1 << 20, true, 1},
		{"a small body is not read", 1000, false, 1},
		{"a large body is not read, and waits for 100 Continue", 8 << 20, false, -1},
		{"a body below the threshold of 100 Continue is not read", 1 << 20, false, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			both(t, tt.conns, func(t *testing.T, s *subject) {
				var requests atomic.Int64
				store := &s3Store{}
				store.first = func(w http.ResponseWriter, r *http.Request) bool {
					n := requests.Add(1)
					if n%3 == 0 {
						return false
					}
					if tt.readBody {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					if n%3 == 1 {
						s3Error(w, http.StatusServiceUnavailable, "SlowDown")
					} else {
						s3Error(w, http.StatusInternalServerError, "InternalError")
					}
					return true
				}
				c := s3Client(s, s.serve(t, "http", store))
				data := noise(tt.size)
				require.NoError(t, put(t.Context(), c, "key", bytes.NewReader(data)))
				require.True(t, bytes.Equal(data, store.get("key")))
				require.True(t, bytes.Equal(data, object(t, c, "key", "")))
				require.EqualValues(t, 6, requests.Load())
				require.LessOrEqual(t, s.accepted.Load(), int64(3))
			})
		})
	}
}

// TestS3CutOff: an object that ends too soon is an error, not a shorter object.
func TestS3CutOff(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		var cut atomic.Bool
		cut.Store(true)
		store := &s3Store{objects: map[string][]byte{"key": noise(1 << 20)}}
		store.first = func(w http.ResponseWriter, _ *http.Request) bool {
			if !cut.Load() {
				return false
			}
			w.Header().Set("Content-Length", "1048576")
			_, _ = w.Write(noise(100_000))
			panic(http.ErrAbortHandler)
		}
		c := s3Client(s, s.serve(t, "http", store))
		body, err := get(t.Context(), c, "key", "")
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.Less(t, n, int64(1<<20))
		require.NoError(t, body.Close())
		cut.Store(false)
		require.Len(t, object(t, c, "key", ""), 1<<20)
	})
}

func TestS3Cancel(t *testing.T) {
	t.Parallel()
	t.Run("get", func(t *testing.T) {
		t.Parallel()
		both(t, 2, func(t *testing.T, s *subject) {
			store := &s3Store{objects: map[string][]byte{"large": noise(32 << 20), "small": {1}}}
			c := s3Client(s, s.serve(t, "http", store))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			body, err := get(ctx, c, "large", "")
			require.NoError(t, err)
			_, err = io.ReadFull(body, make([]byte, 1000))
			require.NoError(t, err)
			cancel()
			_, err = io.Copy(io.Discard, body)
			require.ErrorIs(t, err, context.Canceled)
			_ = body.Close()
			require.Len(t, object(t, c, "small", ""), 1)
		})
	})
	t.Run("put", func(t *testing.T) {
		t.Parallel()
		both(t, 2, func(t *testing.T, s *subject) {
			begun, ended := make(chan error, 1), make(chan error, 1)
			store := &s3Store{}
			store.first = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/bucket/endless" {
					return false
				}
				_, err := r.Body.Read(make([]byte, 1))
				begun <- err
				_, err = io.Copy(io.Discard, r.Body)
				ended <- err
				return true
			}
			c := s3Client(s, s.serve(t, "https", store))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := c.PutObject(ctx, &s3.PutObjectInput{
					Bucket: aws.String("bucket"), Key: aws.String("endless"),
					Body: stream{rand.NewChaCha8([32]byte{})}, ContentLength: aws.Int64(1 << 40),
				})
				failed <- err
			}()
			require.NoError(t, receive(t, begun, "the body"))
			cancel()
			require.ErrorIs(t, receive(t, failed, "the error"), context.Canceled)
			require.Error(t, receive(t, ended, "the end of the body"))
			require.NoError(t, put(t.Context(), c, "other", bytes.NewReader([]byte("fine"))))
		})
	})
}
