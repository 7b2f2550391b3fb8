package queue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func values(q *Queue[int]) (out []int) {
	for e := q.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value)
	}
	return out
}

func TestQueueAgainstASlice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var q Queue[int]
	var model []int
	elems := make([]Elem[int], 50)
	for i := range elems {
		elems[i].Value = i
	}
	for range 20000 {
		e := &elems[r.IntN(len(elems))]
		at := slices.Index(model, e.Value)
		switch r.IntN(3) {
		case 0:
			q.Push(e)
			if at < 0 {
				model = append(model, e.Value)
			}
		case 1:
			require.Equal(t, at >= 0, q.Remove(e))
			if at >= 0 {
				model = slices.Delete(model, at, at+1)
			}
		case 2:
			if f := q.Front(); f != nil {
				require.Equal(t, model[0], f.Value)
				require.Equal(t, model[len(model)-1], q.Back().Value)
			}
		}
		require.Equal(t, len(model), q.Len())
		require.Equal(t, e.Queued(), slices.Contains(model, e.Value))
	}
	require.Equal(t, model, values(&q))
}

func TestRemoveFromAnotherQueueIsRefused(t *testing.T) {
	var a, b Queue[int]
	var e Elem[int]
	a.Push(&e)
	require.False(t, b.Remove(&e))
	require.Equal(t, 1, a.Len())
}
