//go:build !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd

package sock

import "errors"

// Watchable reports whether this platform has a Watcher: it has not.
func Watchable() bool { return false }

// watchSet cannot be had here.
type watchSet struct{}

func newWatchSet() (*watchSet, error) { return nil, errors.ErrUnsupported }

func (s *watchSet) add(*Conn, uint64) error { return errors.ErrUnsupported }

func (s *watchSet) remove(*Conn) {}

func (s *watchSet) close() {}

func (s *watchSet) next(tokens []uint64) ([]uint64, bool) { return tokens, false }
