package convert

import (
	"path"
	"strings"
)

// A section is a part of a layer's blob that holds files of one kind. A container reads little of its image while it starts, and
// which kinds of file that is can be told from their names: what stays together in fewer blocks is fetched in fewer requests,
// before any start has been recorded.
type section int

const (
	running  section = iota // programs, libraries, bytecode, configuration, data: whatever is not below
	sources                 // what interpreters read where there is no bytecode, and only stat where there is
	reading                 // what people and compilers read, and tests
	sections                // how many there are
)

// readingExtensions of files that no running program opens.
var readingExtensions = words(".a .c .c++ .cc .cpp .cxx .debug .f .f90 .gir .h .hh .hpp .hxx .la .markdown .md .o .pod .pxd .pxi .pyi .pyx .rst")

// readingDirs are directories whose content is not read by a start, whatever is above them.
var readingDirs = words("__tests__ doc docs examples include info locale man test tests")

// readingTrees are such directories at their usual places.
var readingTrees = strings.Fields("/usr/lib/debug/ /usr/lib/gcc/ /usr/share/bug/ /usr/share/doc-base/ /usr/share/lintian/ /usr/src/ /var/cache/ /var/lib/apt/ /var/lib/dpkg/ /var/log/")

func words(list string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(list) {
		set[w] = true
	}
	return set
}

// sectionOf tells the section from a file's absolute path.
func sectionOf(name string) section {
	dir, base := path.Split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if readingDirs[part] {
			return reading
		}
	}
	for _, tree := range readingTrees {
		if strings.HasPrefix(name, tree) {
			return reading
		}
	}
	switch ext := path.Ext(base); {
	case readingExtensions[ext], strings.HasSuffix(base, ".opt-1.pyc"), strings.HasSuffix(base, ".opt-2.pyc"):
		return reading
	case ext == ".py":
		return sources
	}
	return running
}
