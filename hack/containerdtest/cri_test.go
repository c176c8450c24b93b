package containerdtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod runs a pod sandbox in the host's network, for which no CNI plugin is needed, until the test ends.
func pod(t *testing.T, conn grpc.ClientConnInterface, logs string) (id string, config *cri.PodSandboxConfig) {
	t.Helper()
	host := &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}}
	config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Uid: filepath.Base(logs), Namespace: "default"},
		LogDirectory: logs, Linux: &cri.LinuxPodSandboxConfig{SecurityContext: host},
	}
	runtime := cri.NewRuntimeServiceClient(conn)
	sandbox, err := runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId}); err != nil {
			t.Error(err)
		}
		if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId}); err != nil {
			t.Error(err)
		}
	})
	return sandbox.PodSandboxId, config
}

// TestPod runs a container in a pod as a kubelet does, both on trees.
func TestPod(t *testing.T) {
	for version, opts := range versions(t) {
		t.Run(version, func(t *testing.T) {
			src := push(t)
			images := &trees{dirs: unpacked(t, src.ref, 2)}
			_, socket := serveSnapshots(t, images)
			opts.Snapshotter, opts.Registries, opts.CRI, opts.PauseImage = socket, []string{src.host}, true, src.ref
			d := start(t, opts)
			_, c := connect(t, d)
			conn := c.Conn().(grpc.ClientConnInterface)
			logs := t.TempDir()
			podID, config := pod(t, conn, logs)
			runtime := cri.NewRuntimeServiceClient(conn)
			created, err := runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: podID, SandboxConfig: config, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "inside"}, Image: &cri.ImageSpec{Image: src.ref}, Command: []string{"/bin/program", "inside"}, LogPath: "log",
			}})
			if err != nil {
				t.Fatalf("create: %v\n%s", err, d.logTail())
			}
			if _, err := runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
				t.Fatal(err)
			}
			waitExited(t, runtime, created.ContainerId)
			text, err := os.ReadFile(filepath.Join(logs, "log"))
			if err != nil || !strings.Contains(string(text), "hello from inside") || !strings.Contains(string(text), "on a tree") {
				t.Errorf("the container printed %q, %v", text, err)
			}
		})
	}
}

// waitExited polls: the CRI has no call that waits for a container.
func waitExited(t *testing.T, runtime cri.RuntimeServiceClient, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		status, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		if status.Status.State == cri.ContainerState_CONTAINER_EXITED {
			if status.Status.ExitCode != 0 {
				t.Errorf("exit code %d: %s", status.Status.ExitCode, status.Status.Message)
			}
			return
		}
		<-ticker.C
	}
}
