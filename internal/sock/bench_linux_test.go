package sock

import "testing"

func BenchmarkPeek(b *testing.B) {
	c, _ := pair(b, "tcp")
	b.ReportAllocs()
	for b.Loop() {
		c.Peek()
	}
}

// BenchmarkExchange: an exchange with its look, in one step and in three. The
// echoing server is in the same process and part of the figure.
func BenchmarkExchange(b *testing.B) {
	p, buf := make([]byte, 128), make([]byte, 4096)
	b.Run("WriteRead", func(b *testing.B) {
		c, server := pair(b, "tcp")
		go echo(server)
		b.ReportAllocs()
		for b.Loop() {
			if res := c.WriteRead(p, buf, false); res.N != len(p) {
				b.Fatalf("got %+v", res)
			}
		}
	})
	for _, peek := range []bool{true, false} {
		name := "Write+Read"
		if peek {
			name = "Peek+Write+Read"
		}
		b.Run(name, func(b *testing.B) {
			c, server := pair(b, "tcp")
			go echo(server)
			b.ReportAllocs()
			for b.Loop() {
				if peek && c.Peek() != Quiet {
					b.Fatal("not quiet")
				}
				if _, err := c.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
