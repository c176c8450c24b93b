package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// TestPod runs a pod as a kubelet does, with each containerd: pull, sandbox, container, log.
func TestPod(t *testing.T) {
	lab := startLab(t)
	ref := pushed(t.Context(), t, lab, "hello:1", helloImage(t), true)
	pause := pushed(t.Context(), t, lab, "pause:1", pauseImage(t), false)
	for name, config := range containerds {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			cfg.CRI, cfg.PauseImage = true, pause
			node := startNode(t, lab, cfg)
			if log := runPod(t, node, ref); !strings.Contains(log, "stdout F "+greeting) {
				t.Errorf("the container's log is %q", log)
			}
			must(t, node.Mounted(t.Context(), ref))
		})
	}
}

// runPod runs one container of the image in a pod on the host's network, to its end, and returns the container's log.
func runPod(t *testing.T, node *nodelab.Node, ref string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+node.Containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	pods, images := runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	logs := t.TempDir()
	host := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
	sandbox := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: "pod", Uid: filepath.Base(logs), Namespace: "default"},
		LogDirectory: logs,
		Linux:        &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: host}},
	}
	pull, err := images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}, SandboxConfig: sandbox})
	if err != nil {
		t.Fatalf("pull: %v\nagent:\n%s", err, node.AgentLogTail())
	}
	pod, err := pods.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandbox})
	must(t, err)
	defer func() {
		_, err := pods.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		must(t, err)
		_, err = pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		must(t, err)
	}()
	container, err := pods.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "hello"}, Image: &runtime.ImageSpec{Image: pull.ImageRef}, LogPath: "hello.log",
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: host}},
		},
	})
	must(t, err)
	_, err = pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: container.ContainerId})
	must(t, err)
	waitExited(ctx, t, pods, container.ContainerId)
	log, err := os.ReadFile(filepath.Join(logs, "hello.log"))
	must(t, err)
	return string(log)
}

func waitExited(ctx context.Context, t *testing.T, pods runtime.RuntimeServiceClient, id string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		must(t, err)
		if status.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			if status.Status.ExitCode != 0 {
				t.Errorf("the container exited with %d: %s", status.Status.ExitCode, status.Status.Message)
			}
			return
		}
		<-tick.C
	}
}
