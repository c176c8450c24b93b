// Package replay measures what a placement policy does to the hits of the caches on workers, by Palette's social network experiment (EuroSys'23).
//
// People of a friendship graph read their home timelines, which show posts of their friends. A worker keeps the posts that it read last. Nothing
// is timed: a request is placed, its post is looked up in the cache of its worker, and the next one comes.
//
// The paper does not say how its timelines are made, so this is the model:
//
//   - Who reads: Zipf with exponent 0.99 over all people; who is how popular is drawn by the seed.
//   - What can be read: everybody has written 10 posts. A timeline shows 50 posts, drawn once from those of all friends (all of them, if there
//     are fewer). Such a draw stands for a feed sorted by relevance.
//   - What is read: a request reads one post, each of the timeline equally often.
//   - Cache: the last 54 posts (LRU, posts of one size), with which the random policy gets 4 % of hits from the graph socfb-Reed98 and 24 workers.
//   - Colour: of the reader, or of the post.
//   - Load, for policies that ask: a request counts for its worker until so many later ones have come.
//
// Hits are of all 72,000 requests, the first of each post among them. Imbalance is the requests of the busiest worker, of the mean.
package replay
