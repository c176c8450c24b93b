// Package member keeps one agent in the function tree of one image.
//
// It stands between the agent's block stack and the edges of package stream:
//
//	stack --Member.Source--> ladder of a stripe: parent, backups, registry --> Peer ==edge==> parent's Share
//
// A Member is told its Position in each stripe by whoever owns the tree, attaches to the parent and to the backups, lets an old
// edge drain when the new one feeds, and sees to it that every read finds somebody to ask meanwhile. Who is a stripe's root asks
// children that hold a block before the registry. It has no idea of schedulers and clocks of the real world: agents and
// simulations run the same code.
package member
