package erofs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const bdiDir = "/sys/class/bdi"

// bdiWatch finds the backing device info of the EROFS mount that is made during its life, where the readahead is set. Over a
// block device it is named by the device's number. Over files it is named "erofs-<counter>" and nothing says which mount it
// belongs to, so it is the one that was not there before, under a lock that all mounting processes take.
type bdiWatch struct {
	lock   int
	before map[string]bool
}

func watchBDI() (*bdiWatch, error) {
	lock, err := unix.Open(bdiDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", bdiDir, err)
	}
	w := &bdiWatch{lock: lock, before: map[string]bool{}}
	if err := w.take(); err != nil {
		w.close()
		return nil, fmt.Errorf("lock %s: %w", bdiDir, err)
	}
	if w.before, err = fileBDIs(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// take takes the lock, but goes on without it after a while: a process that hangs in its mount must not stop all others, and
// the worst is a readahead meant for another mount.
func (w *bdiWatch) take() error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := unix.Flock(w.lock, unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK && time.Now().After(deadline) {
			return nil
		}
		if err != unix.EINTR && err != unix.EWOULDBLOCK {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// close ends the watch and lets others mount.
func (w *bdiWatch) close() { unix.Close(w.lock) }

// bdis are names of entries in bdiDir.
type bdis []string

// setReadAhead sets the readahead in bytes.
func (b bdis) setReadAhead(bytes int) error {
	for _, name := range b {
		if err := os.WriteFile(bdiDir+"/"+name+"/read_ahead_kb", []byte(strconv.Itoa(bytes>>10)), 0); err != nil {
			return err
		}
	}
	return nil
}

// of returns the entry of the file system that mfd is a mount of.
func (w *bdiWatch) of(mfd int) (bdis, error) {
	var st unix.Stat_t
	if err := unix.Fstat(mfd, &st); err != nil { // answered by EROFS from the metadata image
		return nil, fmt.Errorf("fstat mount: %w", err)
	}
	if major := unix.Major(st.Dev); major != 0 {
		return bdis{fmt.Sprintf("%d:%d", major, unix.Minor(st.Dev))}, nil
	}
	after, err := fileBDIs()
	if err != nil {
		return nil, err
	}
	var names bdis
	for name := range after {
		if !w.before[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no new erofs entry in %s", bdiDir)
	}
	return names, nil
}

// fileBDIs returns the entries that EROFS mounts over files have.
func fileBDIs() (map[string]bool, error) {
	entries, err := os.ReadDir(bdiDir)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "erofs-") {
			names[e.Name()] = true
		}
	}
	return names, nil
}
