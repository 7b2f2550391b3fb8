package clients_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"
)

// TestContainerRegistry pushes an image, pulls it, and looks for one that is
// not there. Layers travel two at a time.
func TestContainerRegistry(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			both(t, -1, func(t *testing.T, s *subject) {
				srv := s.serve(t, scheme, registry.New(registry.Logger(quietLog)))
				host := strings.TrimPrefix(strings.TrimPrefix(srv.URL, "http://"), "https://")
				ref, err := name.ParseReference(host + "/team/image:latest")
				require.NoError(t, err)
				opts := []remote.Option{remote.WithTransport(s), remote.WithContext(t.Context()), remote.WithJobs(2)}

				pushed, err := random.Image(300_000, 4)
				require.NoError(t, err)
				require.NoError(t, remote.Write(ref, pushed, opts...))
				pulled, err := remote.Image(ref, opts...)
				require.NoError(t, err)
				require.NoError(t, validate.Image(pulled))
				want, err := pushed.Digest()
				require.NoError(t, err)
				got, err := pulled.Digest()
				require.NoError(t, err)
				require.Equal(t, want, got)

				tags, err := remote.List(ref.Context(), opts...)
				require.NoError(t, err)
				require.Equal(t, []string{"latest"}, tags)
				_, err = remote.Head(ref.Context().Tag("missing"), opts...)
				var refused *transport.Error
				require.ErrorAs(t, err, &refused)
				require.Equal(t, http.StatusNotFound, refused.StatusCode)
				if s.ours != nil { // not counted: attempts of the library to speak TLS
					require.LessOrEqual(t, s.ours.Stats().Opened, uint64(2))
				}
			})
		})
	}
}
