// Package setup changes the configuration of a node's containerd so that it uses xylem, and takes its changes back. It is the
// work of `xylem setup containerd`: the registry proxy before the upstreams (hosts.toml), the snapshotter in proxy_plugins and
// its choice for pods.
//
// Files of users are edited as text, so that comments and whatever xylem does not know survive. A record beside containerd's
// configuration keeps what was there before (the backup) and what was written. The difference of the two are xylem's lines; taken
// out of a file as it is now they leave what the user has, whatever else was edited meanwhile. A run takes out the lines of
// the run before it first, so that it gives the same result however often, and with whichever other options, it was run before.
package setup
