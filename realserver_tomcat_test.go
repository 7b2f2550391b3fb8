//go:build unix

package keepalive_test

import (
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const tomcatConf = `<Server port="-1">
  <Service name="Catalina">
    <Connector address="127.0.0.1" port="%[1]s" keepAliveTimeout="%[2]d" maxKeepAliveRequests="%[3]d"
        continueResponseTiming="onRead" maxSwallowSize="1000" compression="on">
      <UpgradeProtocol className="org.apache.coyote.http2.Http2Protocol"
          maxConcurrentStreams="8" keepAliveTimeout="%[2]d" overheadCountFactor="0" overheadResetFactor="0"/>
    </Connector>
    <Connector address="127.0.0.1" port="%[4]s" keepAliveTimeout="%[2]d" maxKeepAliveRequests="%[3]d"
        continueResponseTiming="onRead" maxSwallowSize="1000" compression="on" SSLEnabled="true">
      <UpgradeProtocol className="org.apache.coyote.http2.Http2Protocol"
          maxConcurrentStreams="8" keepAliveTimeout="%[2]d" overheadCountFactor="0" overheadResetFactor="0"/>
      <SSLHostConfig><Certificate certificateFile="cert.pem" certificateKeyFile="key.pem"/></SSLHostConfig>
    </Connector>
    <Engine name="Catalina" defaultHost="localhost">
      <Host name="localhost" appBase="webapps" autoDeploy="false"/>
    </Engine>
  </Service>
</Server>
`

const tomcatWeb = `<web-app xmlns="https://jakarta.ee/xml/ns/jakartaee" version="5.0">
  <servlet>
    <servlet-name>all</servlet-name><jsp-file>/all.jsp</jsp-file><load-on-startup>1</load-on-startup>
  </servlet>
  <servlet-mapping><servlet-name>all</servlet-name><url-pattern>/*</url-pattern></servlet-mapping>
</web-app>
`

// tomcatPage does what backend does.
const tomcatPage = `<%@page trimDirectiveWhitespaces="true" session="false"
    contentType="application/octet-stream" import="java.io.*,java.security.*,java.util.*,java.util.concurrent.*"%><%!
static final byte[] pattern = "abcdefghijklmnopqrstuvw".repeat(1 << 17).getBytes();
static final Map<String, int[]> held = new ConcurrentHashMap<>();

static int hold(String key) throws Exception {
    int[] h = held.computeIfAbsent(key, k -> new int[2]);
    synchronized (h) { h[1] = Math.max(h[1], ++h[0]); }
    Thread.sleep(50);
    synchronized (h) { h[0]--; return h[1]; }
}
%><%
response.setHeader("X-Conn", String.valueOf(request.getRemotePort()));
String path = request.getServletPath();
if (path.isEmpty() || path.equals("/all.jsp")) path = request.getRequestURI();
if (path.equals("/small") && request.getContentLengthLong() > 1000000) {
    response.setStatus(413); // the rest is not read
    return;
}
MessageDigest sum = MessageDigest.getInstance("SHA-256");
long n = 0;
byte[] buf = new byte[65536];
InputStream in = request.getInputStream();
for (int m; (m = in.read(buf)) >= 0; n += m) sum.update(buf, 0, m);
OutputStream body = response.getOutputStream();
switch (path) {
case "/hello": body.write("hello\n".getBytes()); break;
case "/own": body.write(request.getHeader("X-Request-Id").getBytes()); break;
case "/sum": body.write((n + " " + HexFormat.of().formatHex(sum.digest())).getBytes()); break;
case "/big": response.setContentLength(2 << 20); body.write(pattern, 0, 2 << 20); break;
case "/chunked": body.write(pattern, 0, 2 << 20); break;
case "/text": response.setContentType("text/plain"); body.write(pattern, 0, 64 << 10); break;
case "/status": response.setStatus(Integer.parseInt(request.getQueryString())); break;
case "/trailer":
    response.setHeader("Trailer", "X-Sum");
    response.setTrailerFields(() -> Map.of("X-Sum", "1"));
    body.write(path.getBytes());
    body.flush();
    break;
case "/hold": body.write(String.valueOf(hold(request.getQueryString())).getBytes()); break;
default: response.setStatus(404);
}
if (true) return;
%>`

// tomcat runs Tomcat. perConn -1 means no limit.
func tomcat(t *testing.T, keepAlive time.Duration, perConn int) (r *running, doors []door) {
	t.Helper()
	const home, jars = "/usr/share/tomcat10", "/usr/share/java/" // Debian's places
	if _, err := os.Stat(home + "/bin/bootstrap.jar"); err != nil {
		missing(t, "tomcat10")
	}
	r = daemon{
		paths: []string{"java"},
		args: func(dir string) []string {
			return []string{
				"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true",
				"-cp", home + "/bin/bootstrap.jar:" + home + "/bin/tomcat-juli.jar:" + jars + "eclipse-jdt-core.jar",
				"-Dcatalina.home=" + home, "-Dcatalina.base=" + dir, "-Djava.io.tmpdir=" + dir,
				"org.apache.catalina.startup.Bootstrap", "start",
			}
		},
		conf: func(l listeners, _ int) map[string]string {
			return map[string]string{
				"conf/server.xml":              fmt.Sprintf(tomcatConf, port(l.plain), keepAlive.Milliseconds(), perConn, port(l.tls)),
				"webapps/ROOT/WEB-INF/web.xml": tomcatWeb,
				"webapps/ROOT/all.jsp":         tomcatPage,
			}
		},
	}.run(t)
	h2c := r.h2cDoor()
	h2c.url = "http://" + r.plain
	doors = append(r.doors(), h2c)
	for i := range doors {
		doors[i].continues, doors[i].trailers = true, true
	}
	return r, doors
}

func TestRealTomcat(t *testing.T) {
	t.Parallel()
	_, doors := tomcat(t, time.Minute, -1)
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testStreams(t, 8, doors[2:]...)
}

// Tomcat announces its limits only to who asks for keep-alive.
func TestRealTomcatLimits(t *testing.T) {
	t.Parallel()
	_, doors := tomcat(t, time.Second, 50)
	doors[0].announces, doors[1].announces = true, true
	testIdleLimit(t, doors...)
	for _, d := range doors[:2] {
		tr := d.open(t)
		v := visit{t, tr, d}
		resp, _ := v.ok(http.MethodGet, "/hello", nil)
		require.Equal(t, "timeout=1", resp.Header.Get("Keep-Alive"))
		for range 499 {
			v.own()
		}
		s := tr.Stats()
		require.EqualValues(t, 10, s.Opened)
		require.Zero(t, s.Retries+s.StaleChecks)
	}
}
