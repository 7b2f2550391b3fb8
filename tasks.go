package keepalive

import "sync"

// tasks counts the goroutines that a Transport has started, so that Close can
// wait for them. Unlike with a sync.WaitGroup, one may start while another
// waits. The zero value is ready. Safe for concurrent use.
type tasks struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; made by wait
}

// run runs f in a goroutine of its own.
func (t *tasks) run(f func()) {
	t.add(1)
	go func() {
		defer t.add(-1)
		f()
	}()
}

func (t *tasks) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
	if t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// wait returns when no goroutine is running.
func (t *tasks) wait() {
	for {
		t.mu.Lock()
		if t.n == 0 {
			t.mu.Unlock()
			return
		}
		if t.idle == nil {
			t.idle = make(chan struct{})
		}
		idle := t.idle
		t.mu.Unlock()
		<-idle
	}
}
