// Package tree decides who feeds whom: it is the topology of the trees in which the machines that need the same image pass its
// blocks on. It is a pure state machine. Events go in (Join, Leave, Fail, SetRole, Report), changed attachments come
// out, and the owner of the tree sends them to the machines.
//
// # Stripes and groups
//
// With k stripes, block i travels in stripe i mod k, and every member is attached in all of them. In a single binary tree half of
// the members feed nobody. So each member belongs to the group of one stripe; it may have children there and is a leaf
// in the others. Here are eight members and two stripes, the members of the stripe's group with a slash:
//
//	            registry                   registry
//	               |                          |
//	level 0        b/                         a/
//	             /    \                     /    \
//	level 1    c/      e/                 d/      f/
//	           |      /  \               /  \    /  \
//	level 2    d     a    g/            c    e  b    h/
//	                     /  \                        |
//	leaves              f    h                       g
//
// The arity a is max(2, k), because a member that feeds k children in one of k stripes uploads the image once. Groups
// differ in size by one at most. A group fills its levels from the top: level l has a^l places, and only the last level L may have
// empty ones, in any order. All others hang as leaves wherever there is room. Levels 0 to L-1 are full, so a group of m members
// has m > a^(L-1), and no depth is more than L+1 <= ceil(log m)+1 (to the base a), whatever happened before.
//
// # Events
//
// A new member takes a place in the last level of a smallest group. The place of one that is gone goes to the member of the
// last level that holds most of the stripe (if these hold little, to one of the level above, whom one of the last level follows).
// Nothing else moves but the children of these, so the number of changes does not depend on the number of members. Let nobody
// have more than d children. At worst the root is gone: its d children change, those of the standby that follows
// it, of the mover that follows the standby and of the mover that follows that one, the last d perhaps by taking the place of
// another leaf each: with the movers 5d+2 changes of a stripe. A member that has to change groups makes three more.
// With two stripes, 15 at worst; the mean is two.
//
// A leaf whose parent would be in another zone changes places with a leaf that is a stranger in its own zone.
//
// # Limits, and what gives way
//
// A group of m must feed n-1. Nobody has more than max(a, ceil((n-1)/m)) children in a stripe, which is the least possible. If
// all have RoleAny, m is at least floor(n/k). That makes a, but for four stripes and n mod 4 = 2 or 3, where it is 5
// (6 for n = 7: a group of one). If others must be interior to hold the tree together, this gives way, in this order:
//
//  1. The arity: up to a+1 children, in all stripes together for a member of several groups.
//  2. RoleSpare: as few as needed are drafted into groups.
//  3. The arity again: up to 2a children.
//  4. RoleLeaf: as few as needed are drafted.
//
// A member is in several groups only if fewer members than stripes are in groups. Connectivity never gives way.
//
// # Epochs, leases, backups
//
// Every attachment has an epoch of its tree, later than all before; a receiver keeps the latest (Attachment.Accept). A Change names the
// old parent too, which feeds the child until the new one does. The root of a stripe holds the lease to read its
// blocks from the registry; its children are the standbys, the fullest first, and the first one follows it. Every other
// member knows backups (Tree.Backups): a grandparent, and somebody in another part of the tree.
//
// # Forest
//
// A Forest owns the trees of many images and keeps the children of a machine, over all trees, within a budget. It finds machines that
// are slow by what all of them measure, and hears members' complaints of others: such machines become leaves for a time.
package tree
