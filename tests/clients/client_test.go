package clients_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

// TestOAuth2: tokens are fetched, and fetched again when they expire, over the
// same connection as everything else.
func TestOAuth2(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []int{1, 3600} {
		t.Run(fmt.Sprint("token for ", lifetime, " s"), func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				var tokens atomic.Int64
				mux := http.NewServeMux()
				mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
					if r.FormValue("refresh_token") != "refresh" {
						http.Error(w, "no", http.StatusUnauthorized)
						return
					}
					w.Header().Set("Content-Type", "application/json")
					_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, tokens.Add(1), lifetime)
				})
				mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.WriteString(w, r.Header.Get("Authorization"))
				})
				url := s.serve(t, "http", mux).URL
				conf := &oauth2.Config{ClientID: "id", Endpoint: oauth2.Endpoint{
					TokenURL: url + "/token", AuthStyle: oauth2.AuthStyleInParams,
				}}
				c := conf.Client(context.WithValue(t.Context(), oauth2.HTTPClient, s.client), &oauth2.Token{RefreshToken: "refresh"})
				for i := range 3 {
					want := "Bearer token-1"
					if lifetime == 1 { // such a token is never fresh enough
						want = fmt.Sprint("Bearer token-", i+1)
					}
					resp, err := c.Post(url, "text/plain", strings.NewReader("body"))
					require.Equal(t, want, text(t, resp, err))
				}
			})
		})
	}
}

func TestCookieJar(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		url := s.serve(t, "https", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/login" {
				http.SetCookie(w, &http.Cookie{Name: "a", Value: "1", Path: "/", Secure: true})
				http.SetCookie(w, &http.Cookie{Name: "b", Value: "2", Path: "/", HttpOnly: true})
				http.Redirect(w, r, "/home", http.StatusSeeOther)
				return
			}
			_, _ = io.WriteString(w, r.Method+" "+r.Header.Get("Cookie"))
		})).URL
		jar, err := cookiejar.New(nil)
		require.NoError(t, err)
		s.client.Jar = jar
		resp, err := s.client.Post(url+"/login", "text/plain", strings.NewReader("body"))
		require.Equal(t, "GET a=1; b=2", text(t, resp, err))
		resp, err = s.client.Get(url)
		require.Equal(t, "GET a=1; b=2", text(t, resp, err))
	})
}

// redirector answers /CODE/PATH with a redirect to /PATH, and anything else
// with the method and the length of the body.
var redirector = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	n, _ := io.Copy(io.Discard, r.Body)
	var code int
	var path string
	if _, err := fmt.Sscanf(r.URL.Path, "/%d/%s", &code, &path); err == nil {
		http.Redirect(w, r, "/"+path, code)
		return
	}
	_, _ = fmt.Fprint(w, r.Method, " ", n)
})

func TestRedirects(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path string
		size       int
		rewindable bool
		status     int
		want       string
	}{
		{"302 makes it a GET", "/302/end", 1000, true, 200, "GET 0"},
		{"307 sends a small body again", "/307/end", 1000, true, 200, "POST 1000"},
		{"307 sends a large body again", "/307/end", 1 << 20, true, 200, "POST 1048576"},
		{"308, then 307", "/308/307/end", 1 << 20, true, 200, "POST 1048576"},
		{"307 for a body that cannot be sent again", "/307/end", 1 << 20, false, 307, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				url := s.serve(t, "http", redirector).URL + tt.path
				var body io.Reader = bytes.NewReader(noise(tt.size))
				if !tt.rewindable {
					body = stream{body}
				}
				resp, err := s.client.Post(url, "application/octet-stream", body)
				require.Equal(t, tt.want, text(t, resp, err))
				require.Equal(t, tt.status, resp.StatusCode)
			})
		})
	}
}

func TestCheckRedirect(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		url := s.serve(t, "http", redirector).URL
		errNo := errors.New("no further")
		s.client.CheckRedirect = func(_ *http.Request, via []*http.Request) error {
			if len(via) == 2 {
				return errNo
			}
			return nil
		}
		resp, err := s.client.Get(url + "/302/302/302/end")
		require.ErrorIs(t, err, errNo)
		require.Equal(t, http.StatusFound, resp.StatusCode)
		s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		resp, err = s.client.Get(url + "/302/end")
		require.Contains(t, text(t, resp, err), "Found")
		s.client.CheckRedirect = nil
		_, err = s.client.Get(url + "/" + strings.Repeat("302/", 20) + "end")
		require.ErrorContains(t, err, "stopped after 10 redirects")
		resp, err = s.client.Get(url + "/" + strings.Repeat("302/", 9) + "end")
		require.Equal(t, "GET 0", text(t, resp, err))
	})
}

// hanging answers nothing, or the beginning of a body at /body.
var hanging = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/body" {
		_, _ = io.WriteString(w, "so far")
		_ = http.NewResponseController(w).Flush()
	}
	<-r.Context().Done()
})

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var timeout interface{ Timeout() bool }
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout(), "%v", err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestClientTimeout: in the wait for the head, and in the body. How far a
// request comes before it is not known, so connections are not counted.
func TestClientTimeout(t *testing.T) {
	t.Parallel()
	t.Run("head", func(t *testing.T) {
		t.Parallel()
		both(t, -1, func(t *testing.T, s *subject) {
			s.client.Timeout = 50 * time.Millisecond
			_, err := s.client.Get(s.serve(t, "http", hanging).URL)
			requireTimeout(t, err)
		})
	})
	t.Run("body", func(t *testing.T) {
		t.Parallel()
		both(t, -1, func(t *testing.T, s *subject) {
			url := s.serve(t, "http", hanging).URL + "/body"
			s.client.Timeout = 100 * time.Millisecond
			resp, err := s.client.Get(url)
			for ; err != nil; resp, err = s.client.Get(url) { // a slow machine
				requireTimeout(t, err)
				s.client.Timeout *= 2
				require.Less(t, s.client.Timeout, patience)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			require.Equal(t, "so far", string(got))
			requireTimeout(t, err)
		})
	})
}

// TestClientCloseIdleConnections reaches the transport through http.Client.
func TestClientCloseIdleConnections(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		url := s.serve(t, "http", redirector).URL
		for range 2 {
			resp, err := s.client.Get(url)
			require.Equal(t, "GET 0", text(t, resp, err))
			s.client.CloseIdleConnections()
		}
	})
}
