// Package queue is a list in order of arrival whose members can leave from
// anywhere. The pool keeps its waiters and its idle connections in such lists:
// the front is the one that has been there longest.
package queue

// Elem is a place in a queue, embedded by value in its member. A member that
// is in several queues at once has an Elem for each. The zero value is in no
// queue.
type Elem[T any] struct {
	next, prev *Elem[T]
	queue      *Queue[T]
	// Value is the member. Set by the owner before Push.
	Value T
}

// Queued reports whether e is in a queue.
func (e *Elem[T]) Queued() bool { return e.queue != nil }

// Next returns the element behind e, or nil.
func (e *Elem[T]) Next() *Elem[T] { return e.next }

// Prev returns the element before e, or nil.
func (e *Elem[T]) Prev() *Elem[T] { return e.prev }

// Queue is a first-in, first-out queue. Each operation takes constant time and
// allocates nothing. The zero value is empty. Not safe for concurrent use: it
// has no lock of its own.
type Queue[T any] struct {
	head, tail *Elem[T]
	n          int
}

// Len returns the number of elements.
func (q *Queue[T]) Len() int { return q.n }

// Front returns the oldest element, or nil.
func (q *Queue[T]) Front() *Elem[T] { return q.head }

// Back returns the newest element, or nil.
func (q *Queue[T]) Back() *Elem[T] { return q.tail }

// Push appends e. An element that is queued already stays where it is.
func (q *Queue[T]) Push(e *Elem[T]) {
	if e.queue != nil {
		return
	}
	e.queue, e.prev, e.next = q, q.tail, nil
	if q.tail != nil {
		q.tail.next = e
	} else {
		q.head = e
	}
	q.tail = e
	q.n++
}

// Remove takes e out and reports whether it was in q.
func (q *Queue[T]) Remove(e *Elem[T]) bool {
	if e.queue != q {
		return false
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		q.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		q.tail = e.prev
	}
	e.next, e.prev, e.queue = nil, nil, nil
	q.n--
	return true
}
