//go:build race

package wire

// raceEnabled: sync.Pool drops things at random under the race detector.
const raceEnabled = true
