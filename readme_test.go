package keepalive_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/format"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	require.NoError(t, err)
	return string(b)
}

// snippetImports are the packages that a snippet may use, by their names.
var snippetImports = map[string]string{
	"context":   "context",
	"errors":    "errors",
	"fmt":       "fmt",
	"http":      "net/http",
	"keepalive": "github.com/keepalive-http/keepalive",
	"log":       "log",
	"net":       "net",
	"time":      "time",
}

// snippetParams are the variables that a snippet may use without declaring them.
const snippetParams = "ctx context.Context, t *keepalive.Transport, old *http.Transport, err error"

// snippetFile makes a file of the statements in block.
func snippetFile(t *testing.T, n int, block string) []byte {
	t.Helper()
	fn := fmt.Sprintf("func _(%s) {\n{\n%s\n", snippetParams, block)
	file, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+fn+"}\n}\n", parser.SkipObjectResolution)
	require.NoError(t, err, "block %d:\n%s", n, block)
	used := map[string]bool{}
	ast.Inspect(file, func(node ast.Node) bool {
		if sel, ok := node.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && snippetImports[x.Name] != "" {
				used[x.Name] = true
			}
		}
		return true
	})
	var b strings.Builder
	b.WriteString("package p\n")
	for name := range used {
		fmt.Fprintf(&b, "import %q\n", snippetImports[name])
	}
	b.WriteString(fn)
	for _, name := range declared(file) { // what a snippet ends with is often not used in it
		fmt.Fprintf(&b, "_ = %s\n", name)
	}
	b.WriteString("}\n}\n")
	src, err := format.Source([]byte(b.String()))
	require.NoError(t, err)
	return src
}

// declared returns what the statements of a snippet declare, the inner ones
// not included.
func declared(file *ast.File) (names []string) {
	fn, _ := file.Decls[len(file.Decls)-1].(*ast.FuncDecl)
	body, _ := fn.Body.List[0].(*ast.BlockStmt)
	for _, stmt := range body.List {
		assign, ok := stmt.(*ast.AssignStmt)
		if !ok || assign.Tok != token.DEFINE {
			continue
		}
		for _, lhs := range assign.Lhs {
			if id, ok := lhs.(*ast.Ident); ok && id.Name != "_" && !slices.Contains(names, id.Name) {
				names = append(names, id.Name)
			}
		}
	}
	return names
}

// Every Go block of the README, and of the migration guide, passes go vet, as
// statements of a function. The files are laid over docs, a directory that has no Go code, so that nothing is
// downloaded or written into the module.
func TestReadmeCompiles(t *testing.T) {
	guide, err := os.ReadFile("docs/MIGRATING.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(readme(t)+string(guide), -1)
	require.Greater(t, len(blocks), 6)
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command")
	}
	root, err := os.Getwd()
	require.NoError(t, err)
	dir := t.TempDir()
	replace := map[string]string{}
	for i, block := range blocks {
		name := fmt.Sprintf("block%d.go", i+1)
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, snippetFile(t, i+1, block[1]), 0o600))
		replace[filepath.Join(root, "docs", name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	overlayPath := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(overlayPath, overlay, 0o600))
	out, err := exec.CommandContext(t.Context(), goTool, "vet", "-overlay", overlayPath,
		"./docs").CombinedOutput()
	require.NoError(t, err, "go vet:\n%s", out)
}

// option is an exported option function, as the source says.
type option struct {
	name string
	decl *ast.FuncDecl
}

// source is what the root package's files say of its options.
type source struct {
	fset     *token.FileSet
	options  []option          // functions that return an Option
	request  []string          // functions that return a RequestOption
	consts   map[string]string // untyped constants of options.go
	defaults map[string]string // fields of config that defaultConfig sets, as expressions
}

func readSource(t *testing.T) *source {
	t.Helper()
	s := &source{fset: token.NewFileSet(), consts: map[string]string{}, defaults: map[string]string{}}
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(s.fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				s.function(decl)
			case *ast.GenDecl:
				s.constants(t, decl)
			}
		}
	}
	return s
}

func (s *source) function(decl *ast.FuncDecl) {
	switch result := resultName(decl); {
	case decl.Recv != nil:
	case decl.Name.Name == "defaultConfig":
		ast.Inspect(decl, func(n ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok {
				s.fields("", lit)
				return false
			}
			return true
		})
	case !decl.Name.IsExported():
	case result == "Option":
		s.options = append(s.options, option{decl.Name.Name, decl})
	case result == "RequestOption":
		s.request = append(s.request, decl.Name.Name)
	}
}

func resultName(decl *ast.FuncDecl) string {
	if decl.Type.Results == nil || len(decl.Type.Results.List) != 1 {
		return ""
	}
	id, ok := decl.Type.Results.List[0].Type.(*ast.Ident)
	if !ok {
		return ""
	}
	return id.Name
}

func (s *source) constants(t *testing.T, decl *ast.GenDecl) {
	t.Helper()
	if decl.Tok != token.CONST {
		return
	}
	for _, spec := range decl.Specs {
		if v, ok := spec.(*ast.ValueSpec); ok && v.Type == nil && len(v.Names) == len(v.Values) {
			for i, name := range v.Names {
				s.consts[name.Name] = s.text(t, v.Values[i])
			}
		}
	}
}

// fields notes the fields of a struct literal: those of the embedded timeouts
// by their own names, those of any other inner literal behind its field's.
func (s *source) fields(prefix string, lit *ast.CompositeLit) {
	for _, elt := range lit.Elts {
		kv, ok := elt.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key := fmt.Sprint(kv.Key)
		inner, ok := kv.Value.(*ast.CompositeLit)
		switch {
		case ok && key == "timeouts":
			s.fields(prefix, inner)
		case ok:
			s.fields(prefix+key+".", inner)
		default:
			var b strings.Builder
			_ = format.Node(&b, s.fset, kv.Value)
			s.defaults[prefix+key] = b.String()
		}
	}
}

func (s *source) text(t *testing.T, node ast.Node) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, format.Node(&b, s.fset, node))
	return b.String()
}

// value computes a constant expression of the source; a missing one is 0.
func (s *source) value(t *testing.T, expr string) constant.Value {
	t.Helper()
	expr = cmp.Or(s.consts[expr], expr, "0")
	for name, unit := range map[string]time.Duration{
		"time.Millisecond": time.Millisecond, "time.Second": time.Second, "time.Minute": time.Minute, "time.Hour": time.Hour,
	} {
		expr = strings.ReplaceAll(expr, name, fmt.Sprint(int64(unit)))
	}
	v, err := types.Eval(token.NewFileSet(), nil, token.NoPos, expr)
	require.NoError(t, err, expr)
	return v.Value
}

// defaultOf returns the default of an option as the table writes it: the
// values of the config fields that its parameters are assigned to.
func (s *source) defaultOf(t *testing.T, o option) string {
	t.Helper()
	switch o.name {
	case "FromTransport":
		return "-"
	case "WithProxy":
		require.Equal(t, "proxyFromEnvironment()", s.defaults["proxy"])
		return "the environment's"
	case "WithProtocols":
		require.Equal(t, "defaultProtocols()", s.defaults["protocols"])
		return "HTTP/1, HTTP/2"
	case "WithHTTP2Config":
		return "its zero value"
	case "WithIdleOrder":
		return keepalive.IdleOrder(0).String()
	case "WithRetryPolicy":
		p := keepalive.DefaultRetryPolicy()
		return fmt.Sprintf("%d, %g", p.MaxRetries, p.Budget)
	case "WithReuseStrategy":
		return "nil"
	case "WithTCPKeepAlive":
		return strings.Join([]string{
			durationText(s.value(t, s.defaults["tcpKeepAlive.Idle"])),
			durationText(s.value(t, s.defaults["tcpKeepAlive.Interval"])),
			s.value(t, s.defaults["tcpKeepAlive.Count"]).String(),
		}, ", ")
	}
	var parts []string
	for _, param := range o.decl.Type.Params.List {
		for _, name := range param.Names {
			field := assignedField(o.decl, name.Name)
			require.NotEmpty(t, field, "%s: no field of config is set from %s", o.name, name.Name)
			parts = append(parts, s.render(t, o.name, s.text(t, param.Type), name.Name, s.defaults[field]))
		}
	}
	return strings.Join(parts, ", ")
}

func (s *source) render(t *testing.T, option, typ, param, expr string) string {
	t.Helper()
	switch {
	case typ == "time.Duration":
		return durationText(s.value(t, expr))
	case typ == "bool":
		return cmp.Or(expr, "false")
	case typ == "float64":
		return s.value(t, expr).String()
	case param == "bytes" || strings.HasSuffix(option, "Bytes"):
		return bytesText(s.value(t, expr))
	case typ == "int":
		return s.value(t, expr).String()
	case strings.HasPrefix(typ, "func(") || strings.HasPrefix(typ, "*"):
		return cmp.Or(expr, "nil")
	}
	require.FailNowf(t, "unknown type", "%s(%s): say in defaultOf what its default is", option, typ)
	return ""
}

// assignedField returns the field f of "c.f = param" in decl.
func assignedField(decl *ast.FuncDecl, param string) (field string) {
	ast.Inspect(decl, func(n ast.Node) bool {
		assign, ok := n.(*ast.AssignStmt)
		if !ok || len(assign.Lhs) != len(assign.Rhs) {
			return true
		}
		for i, lhs := range assign.Lhs {
			sel, isField := lhs.(*ast.SelectorExpr)
			rhs := assign.Rhs[i]
			if call, ok := rhs.(*ast.CallExpr); ok { // cfg.Clone()
				if fun, ok := call.Fun.(*ast.SelectorExpr); ok {
					rhs = fun.X
				}
			}
			if id, ok := rhs.(*ast.Ident); ok && isField && id.Name == param {
				field = sel.Sel.Name
			}
		}
		return true
	})
	return field
}

func durationText(v constant.Value) string {
	n, _ := constant.Int64Val(constant.ToInt(v))
	switch d := time.Duration(n); {
	case d == 0:
		return "0"
	case d > time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%d s", d/time.Second)
	default:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	}
}

func bytesText(v constant.Value) string {
	switch n, _ := constant.Int64Val(v); {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	default:
		return fmt.Sprint(n)
	}
}

// optionRows returns the rows under "## Options", name to cells.
func optionRows(t *testing.T) (names []string, rows map[string][]string) {
	t.Helper()
	_, text, ok := strings.Cut(readme(t), "\n## Options\n")
	require.True(t, ok)
	text, _, ok = strings.Cut(text, "\n## ")
	require.True(t, ok)
	rows = map[string][]string{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		for name := range strings.SplitSeq(cells[0], ",") {
			name = strings.Trim(name, " `")
			require.NotContains(t, rows, name, "listed twice")
			names, rows[name] = append(names, name), cells[1:]
		}
	}
	return names, rows
}

// The table names every option and nothing else, with the default that the
// code sets and the option's comment states.
func TestReadmeOptions(t *testing.T) {
	s := readSource(t)
	listed, rows := optionRows(t)
	want := slices.Clone(s.request)
	for _, o := range s.options {
		want = append(want, o.name)
	}
	require.ElementsMatch(t, want, listed)

	for _, o := range s.options {
		row := rows[o.name]
		require.Len(t, row, 3, "%s: default, zero, note", o.name)
		def := s.defaultOf(t, o)
		require.Equal(t, def, row[0], "default of %s", o.name)

		doc := strings.Join(strings.Fields(o.decl.Doc.Text()), " ")
		doc = strings.NewReplacer(" minutes", " min", " and ", ", ", " idle, 15 s apart, ", ", 15 s, ", " probes", "").Replace(doc)
		stated := regexp.MustCompile(`[Tt]he default is (.*?)\.( |$)`).FindStringSubmatch(doc)
		if stated != nil && o.name != "WithRetryPolicy" {
			require.Equal(t, def, stated[1], "%s: its comment", o.name)
		} else if stated == nil {
			require.Contains(t, []string{"-", "0", "nil"}, def, "%s: its comment states no default", o.name)
		}
	}
}

func TestReadmeSize(t *testing.T) {
	require.LessOrEqual(t, strings.Count(readme(t), "\n"), 200)
}
