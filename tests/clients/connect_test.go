package clients_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type (
	stringValue = wrapperspb.StringValue
	countValue  = wrapperspb.Int64Value
)

// The procedures of a service that is written by hand.
const (
	pathEcho  = "/keepalive.test.Service/Echo"  // unary
	pathWait  = "/keepalive.test.Service/Wait"  // unary, until the caller gives up
	pathCount = "/keepalive.test.Service/Count" // server stream: 0 to n-1
	pathSum   = "/keepalive.test.Service/Sum"   // client stream
	pathChat  = "/keepalive.test.Service/Chat"  // bidi: each message comes back
)

func (w watch) hang(ctx context.Context) error {
	w.begun <- nil
	<-ctx.Done()
	w.ended <- ctx.Err()
	return ctx.Err()
}

func service(w watch) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(pathEcho, connect.NewUnaryHandler(pathEcho,
		func(_ context.Context, req *connect.Request[stringValue]) (*connect.Response[stringValue], error) {
			if req.Msg.Value == "" {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("nothing to echo"))
			}
			resp := connect.NewResponse(req.Msg)
			resp.Header().Set("Echo-Header", req.Header().Get("Ask"))
			resp.Trailer().Set("Echo-Trailer", req.Header().Get("Ask"))
			return resp, nil
		}, connect.WithIdempotency(connect.IdempotencyNoSideEffects)))
	mux.Handle(pathWait, connect.NewUnaryHandler(pathWait,
		func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[emptypb.Empty], error) {
			return nil, w.hang(ctx)
		}))
	mux.Handle(pathCount, connect.NewServerStreamHandler(pathCount,
		func(ctx context.Context, req *connect.Request[countValue], out *connect.ServerStream[countValue]) error {
			for i := range req.Msg.Value {
				if err := out.Send(wrapperspb.Int64(i)); err != nil {
					w.ended <- err
					return err
				}
			}
			if req.Msg.Value == 1 { // hangs behind the first
				return w.hang(ctx)
			}
			return nil
		}))
	mux.Handle(pathSum, connect.NewClientStreamHandler(pathSum,
		func(_ context.Context, in *connect.ClientStream[countValue]) (*connect.Response[countValue], error) {
			var sum int64
			for in.Receive() {
				sum += in.Msg().Value
			}
			return connect.NewResponse(wrapperspb.Int64(sum)), in.Err()
		}))
	mux.Handle(pathChat, connect.NewBidiStreamHandler(pathChat,
		func(_ context.Context, s *connect.BidiStream[stringValue, stringValue]) error {
			for {
				m, err := s.Receive()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := s.Send(m); err != nil {
					return err
				}
			}
		}))
	return mux
}

// callers are the clients of the service.
type callers struct {
	echo  *connect.Client[stringValue, stringValue]
	wait  *connect.Client[emptypb.Empty, emptypb.Empty]
	count *connect.Client[countValue, countValue]
	sum   *connect.Client[countValue, countValue]
	chat  *connect.Client[stringValue, stringValue]
}

func newCallers(s *subject, srv *httptest.Server, o connect.ClientOption) callers {
	return callers{
		echo:  connect.NewClient[stringValue, stringValue](s.client, srv.URL+pathEcho, o),
		wait:  connect.NewClient[emptypb.Empty, emptypb.Empty](s.client, srv.URL+pathWait, o),
		count: connect.NewClient[countValue, countValue](s.client, srv.URL+pathCount, o),
		sum:   connect.NewClient[countValue, countValue](s.client, srv.URL+pathSum, o),
		chat:  connect.NewClient[stringValue, stringValue](s.client, srv.URL+pathChat, o),
	}
}

func (c callers) unary(t *testing.T, msg string) {
	t.Helper()
	req := connect.NewRequest(wrapperspb.String(msg))
	req.Header().Set("Ask", "me")
	resp, err := c.echo.CallUnary(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, msg, resp.Msg.Value)
	require.Equal(t, "me", resp.Header().Get("Echo-Header"))
	require.Equal(t, "me", resp.Trailer().Get("Echo-Trailer"))
}

func (c callers) refused(t *testing.T) {
	t.Helper()
	_, err := c.echo.CallUnary(t.Context(), connect.NewRequest(wrapperspb.String("")))
	require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%v", err)
}

func (c callers) serverStream(t *testing.T) {
	t.Helper()
	const n = 50
	in, err := c.count.CallServerStream(t.Context(), connect.NewRequest(wrapperspb.Int64(n)))
	require.NoError(t, err)
	next := int64(0)
	for ; in.Receive(); next++ {
		require.Equal(t, next, in.Msg().Value)
	}
	require.NoError(t, in.Err())
	require.NoError(t, in.Close())
	require.EqualValues(t, n, next)
}

func (c callers) clientStream(t *testing.T) {
	t.Helper()
	out := c.sum.CallClientStream(t.Context())
	for i := range int64(50) {
		require.NoError(t, out.Send(wrapperspb.Int64(i)))
	}
	resp, err := out.CloseAndReceive()
	require.NoError(t, err)
	require.EqualValues(t, 50*49/2, resp.Msg.Value)
}

// bidi gets each message back before it sends the next.
func (c callers) bidi(t *testing.T) {
	t.Helper()
	s := c.chat.CallBidiStream(t.Context())
	for i := range 10 {
		msg := fmt.Sprint("message ", i)
		require.NoError(t, s.Send(wrapperspb.String(msg)))
		got, err := s.Receive()
		require.NoError(t, err)
		require.Equal(t, msg, got.Value)
	}
	require.NoError(t, s.CloseRequest())
	_, err := s.Receive()
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, s.CloseResponse())
}

// giveUp cancels a call and a stream that hang.
func (c callers) giveUp(t *testing.T, w watch) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := c.wait.CallUnary(ctx, connect.NewRequest(&emptypb.Empty{}))
		failed <- err
	}()
	receive(t, w.begun, "the unary call")
	cancel()
	err := receive(t, failed, "the error of the unary call")
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), "%v", err)
	require.Error(t, receive(t, w.ended, "the end of the unary handler"))

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	in, err := c.count.CallServerStream(ctx, connect.NewRequest(wrapperspb.Int64(1)))
	require.NoError(t, err)
	require.True(t, in.Receive(), "%v", in.Err())
	receive(t, w.begun, "the stream")
	cancel()
	require.False(t, in.Receive())
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(in.Err()), "%v", in.Err())
	require.Error(t, receive(t, w.ended, "the end of the streaming handler"))
	_ = in.Close()
}

// deadline lets the deadline of a call pass, which the server hears of, too.
func (c callers) deadline(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.wait.CallUnary(ctx, connect.NewRequest(&emptypb.Empty{}))
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err), "%v", err)
}

type dialect struct {
	name string
	with connect.ClientOption
}

var (
	dialectsHTTP1 = []dialect{
		{"connect", connect.WithProtoJSON()},
		{"connect gzip", connect.WithSendGzip()},
		{"connect get", connect.WithHTTPGet()},
		{"grpc-web", connect.WithGRPCWeb()},
	}
	dialectsHTTP2 = append(slices.Clip(dialectsHTTP1),
		dialect{"grpc", connect.WithGRPC()})
)

// TestConnectHTTP1: what RPC can do in HTTP/1.1: everything but bidi.
func TestConnectHTTP1(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		for _, d := range dialectsHTTP1 {
			t.Run(scheme+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				both(t, 1, func(t *testing.T, s *subject) {
					c := newCallers(s, s.serve(t, scheme, service(newWatch())), d.with)
					c.unary(t, "hello")
					c.refused(t)
					c.serverStream(t)
					c.clientStream(t)
					c.unary(t, strings.Repeat("large ", 100_000))
					c.unary(t, "and again")
				})
			})
		}
	}
}

// TestConnectHTTP1GivesUp: each call that is given up costs its connection.
func TestConnectHTTP1GivesUp(t *testing.T) {
	t.Parallel()
	for _, d := range dialectsHTTP1 {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			both(t, 3, func(t *testing.T, s *subject) {
				w := newWatch()
				c := newCallers(s, s.serve(t, "http", service(w)), d.with)
				c.giveUp(t, w)
				c.unary(t, "still there")
			})
		})
	}
}

// TestConnectHTTP1Deadline: how far a call comes before its deadline is not
// known, so connections are not counted.
func TestConnectHTTP1Deadline(t *testing.T) {
	t.Parallel()
	both(t, -1, func(t *testing.T, s *subject) {
		c := newCallers(s, s.serve(t, "http", service(newWatch())), connect.WithGRPCWeb())
		c.deadline(t)
		c.unary(t, "still there")
	})
}

// TestConnectHTTP1EarlyClose: a stream that is closed long before its end.
func TestConnectHTTP1EarlyClose(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		w := newWatch()
		c := newCallers(s, s.serve(t, "http", service(w)), connect.WithGRPCWeb())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in, err := c.count.CallServerStream(ctx, connect.NewRequest(wrapperspb.Int64(1<<40)))
		require.NoError(t, err)
		require.True(t, in.Receive(), "%v", in.Err())
		cancel()
		_ = in.Close()
		require.Error(t, receive(t, w.ended, "the end of the streaming handler"))
		c.unary(t, "still there")
	})
}

// TestConnectHTTP2: all kinds of calls, many at once, on one connection.
func TestConnectHTTP2(t *testing.T) {
	t.Parallel()
	for name, plain := range map[string]bool{"tls": false, "h2c": true} {
		for _, d := range dialectsHTTP2 {
			t.Run(name+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				bothHTTP2(t, plain, 1, func(t *testing.T, s *subject) {
					w := newWatch()
					c := newCallers(s, s.serveHTTP2(t, plain, service(w)), d.with)
					c.unary(t, "the first opens the connection")
					c.refused(t)
					var all sync.WaitGroup
					for range 4 {
						all.Go(func() { c.unary(t, strings.Repeat("large ", 20_000)) })
						all.Go(func() { c.serverStream(t) })
						all.Go(func() { c.clientStream(t) })
						all.Go(func() { c.bidi(t) })
					}
					all.Wait()
					c.giveUp(t, w)
					c.unary(t, "still there")
				})
			})
		}
	}
}

// TestConnectHTTP2Deadline: a server that is slow to answer the ping that
// follows a deadline costs a connection, so connections are not counted.
func TestConnectHTTP2Deadline(t *testing.T) {
	t.Parallel()
	for name, plain := range map[string]bool{"tls": false, "h2c": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothHTTP2(t, plain, -1, func(t *testing.T, s *subject) {
				c := newCallers(s, s.serveHTTP2(t, plain, service(newWatch())), connect.WithGRPC())
				c.deadline(t)
				c.unary(t, "still there")
			})
		})
	}
}
