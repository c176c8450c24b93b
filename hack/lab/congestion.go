package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel parameters. Which congestion controls there are and which of them a namespace may choose is decided for the whole machine.
const (
	chosenCongestion    = "/proc/sys/net/ipv4/tcp_congestion_control"
	availableCongestion = "/proc/sys/net/ipv4/tcp_available_congestion_control"
	allowedCongestion   = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
)

// congestion returns the namespace's TCP congestion control.
func (n namespace) congestion() (name string, err error) {
	err = n.do(func() error {
		text, err := os.ReadFile(chosenCongestion)
		name = strings.TrimSpace(string(text))
		return err
	})
	return name, err
}

// setCongestion chooses the namespace's TCP congestion control. The kernel looks at what is allowed only at this moment, so one that
// is not allowed otherwise is for this moment only.
func (n namespace) setCongestion(name string) (err error) {
	known, err := os.ReadFile(availableCongestion)
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(known)), name) {
		return fmt.Errorf("congestion control %q: the kernel has %s", name, strings.TrimSpace(string(known)))
	}
	lock, err := os.Open(namespaceDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // against another lab that does the same
		return err
	}
	allowed, err := os.ReadFile(allowedCongestion)
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(allowed)), name) {
		if err := os.WriteFile(allowedCongestion, []byte(strings.TrimSpace(string(allowed))+" "+name), 0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.WriteFile(allowedCongestion, allowed, 0)) }()
	}
	return n.do(func() error { return os.WriteFile(chosenCongestion, []byte(name), 0) })
}
