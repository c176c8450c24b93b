package nodelab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
)

// DropCaches writes everything to disk and empties the machine's page, dentry and inode caches.
func DropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("empty the page cache: %w", err)
	}
	return nil
}

// Metrics returns the agent's counters and gauges by name; those of one name with different labels are added up.
func (n *Node) Metrics(ctx context.Context) (map[string]float64, error) {
	return Metrics(ctx, filepath.Join(n.State(), "admin.sock"))
}

// Metrics returns what Node.Metrics does, of the daemon with this admin socket.
func Metrics(ctx context.Context, socket string) (map[string]float64, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics: %s", resp.Status)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.Metric {
			values[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values, nil
}

// RSS returns the resident memory in bytes of the agent and its children.
func (n *Node) RSS() (int64, error) {
	if n.agent == nil {
		return 0, errors.New("the node has no agent")
	}
	return treeRSS(n.agent.Pid())
}

func treeRSS(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var total int64
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, err
			}
			total = kib << 10
		}
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			return 0, err
		}
		for _, child := range strings.Fields(string(children)) {
			id, err := strconv.Atoi(child)
			if err != nil {
				return 0, err
			}
			rss, err := treeRSS(id)
			if err != nil {
				return 0, err
			}
			total += rss
		}
	}
	return total, nil
}

// WarmNative runs a program in an unpacked image, without containers and with its files in the page cache, and returns the
// time to its first line: the reference for what a start costs by itself.
func WarmNative(ctx context.Context, rootfs string, argv ...string) (time.Duration, error) {
	var took time.Duration
	for range 2 { // the first one warms
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootfs}
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"} // the directory is shared: read only
		var err error
		if took, _, err = firstLine(here{}, cmd); err != nil {
			return 0, fmt.Errorf("without a container: %w", err)
		}
	}
	return took, nil
}
