/* comm: the ranks of a group as their hosts see them: who is there, an exchange of small messages, and the end of it when one of them
 * fails. What moves tensors (kernels/reduce.h) is not here. Ranks are threads of one
 * process; ranks of several processes need another file behind the same functions. Every function but comm_fail is called by all ranks, each
 * from its own thread, in the same order. */
#ifndef ENGINE_COMM_H
#define ENGINE_COMM_H
#include <stddef.h>

enum { COMM_WORLD_MAX = 8 };

struct comm_group; /* shared by its ranks */

/* A rank's place. */
struct comm {
    struct comm_group *group; /* borrowed; NULL with world > 1: a rank alone, for timing: its collectives copy as many bytes and wait for nobody */
    int rank, world;
};

/* world ranks that give up on each other after patience_s seconds of waiting. ERR_CONFIG: world outside 1..COMM_WORLD_MAX. */
int  comm_group_open(struct comm_group **out, int world, double patience_s);
void comm_group_close(struct comm_group *g); /* after all ranks left; NULL is fine */
struct comm comm_of(struct comm_group *g, int rank);

/* all[p] = what rank p gave, `bytes` each (at most 4096), in every rank; a barrier. ERR_DEVICE naming the rank that failed or did not come in time;
 * from then on every call of every rank returns it. */
int  comm_exchange(const struct comm *c, const void *mine, size_t bytes, void *all);
int  comm_barrier(const struct comm *c);
/* Let the others know that this rank gave up, and why: the sentence of err.h as it stands in this thread. */
void comm_fail(const struct comm *c);
/* 0, or ERR_DEVICE when some rank failed: asked now and then by whoever waits for a device. */
int  comm_check(const struct comm *c);
int  comm_failed(const struct comm *c); /* 1 then, without the sentence */
double comm_patience(const struct comm *c); /* seconds; 0: alone */
#endif
