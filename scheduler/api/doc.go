// Package api is what agents and schedulers say to each other: the messages, and the agent's side of the conversation.
//
// It stands beside the way of the data: blocks never pass through a scheduler. All calls are JSON over HTTPS. An agent joins a
// cluster once with a join token and gets a certificate of the cluster's CA for its key; from then on both sides
// authenticate with certificates. An agent that needs an image enters its function tree at the scheduler that owns it, is told
// its place there by a Position for each stripe, and says with each heartbeat how it gets on.
package api
