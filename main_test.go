package keepalive

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// serverEnv makes the test binary a server: benchmarks need one that does not
// run in the process whose cost they measure.
const serverEnv = "KEEPALIVE_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		cheapServer()
		return
	}
	// Tests name hosts that a proxy in the environment cannot know.
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		_ = os.Unsetenv(name)
	}
	goleak.VerifyTestMain(m)
}

// cheapServer answers every request head with the same small response until
// its standard input ends.
func cheapServer() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go serveCheaply(c)
	}
}

// bigSize makes the server answer with a body of that size instead.
var bigSize, _ = strconv.Atoi(os.Getenv(serverEnv))

const smallAnswer = "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 128\r\nVary: Accept-Encoding\r\n" +
	"Cache-Control: no-cache\r\n\r\n"

func serveCheaply(c net.Conn) {
	defer func() { _ = c.Close() }()
	reply := []byte(smallAnswer + strings.Repeat("x", 128))
	if bigSize > 0 {
		reply = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", bigSize, strings.Repeat("x", bigSize))
	}
	buf := make([]byte, 4096)
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += m; n < 4 || string(buf[n-4:n]) != "\r\n\r\n" {
			continue
		}
		n = 0
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// startServer runs cheapServer in a process of its own and returns its address.
// size 0 means its small answer, otherwise the size of the body.
func startServer(t testing.TB, size int) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+strconv.Itoa(size))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
