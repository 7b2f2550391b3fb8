// Package keepalive is an http.RoundTripper built around its pool of
// persistent connections: a drop-in for *http.Transport in any http.Client.
package keepalive
