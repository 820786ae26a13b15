/* ranks: a model that several ranks of this process hold together. Each rank has a thread, a backend and a share of the weights; what they do
 * together they do in their own threads at the same time. Rank 0 is whoever asks: a world of 1 costs nothing. */
#ifndef ENGINE_RANKS_H
#define ENGINE_RANKS_H
#include "engine/model.h"

struct rank {
    struct comm comm;
    struct backend *be;  /* rank 0: the caller's, borrowed; others: owned by the ranks */
    struct model *model; /* likewise */
    void *user;          /* whatever works with it keeps here; NULL at first */
};

struct ranks;

/* Threads and a group for `world` ranks that give up on each other after patience_s; be and model are rank 0's, neither is touched here.
 * ERR_CONFIG: a world that comm does not hold, ERR_MEMORY. */
int  ranks_open(struct ranks **out, int world, struct backend *be, struct model *model, double patience_s);
void ranks_close(struct ranks *r); /* models and backends of all ranks but 0 go, too; NULL is fine */
int  ranks_world(const struct ranks *r);
struct rank *ranks_at(struct ranks *r, int rank); /* lent; touched by nobody while ranks_do runs */

/* What every rank opens and loads. */
struct ranks_model {
    const char *kind;            /* of the backend */
    struct backend_opts device;  /* rank 0's; threads (0: all there are) are shared out evenly */
    int per_device;              /* so many ranks in a row share a device, >= 1: rank p has device.device + p / per_device */
    const char *dir;             /* the checkpoint; NULL: random weights of `shape` from `seed` */
    const struct model_config *shape;
    uint64_t seed;
    struct model_opts opts;      /* opts.shard: world 1 and more than one rank here: each gets its own. One rank alone of a larger world: its
                                    place there, whose other ranks nobody waits for (struct comm) */
};
/* Backend and model of every rank, together; rank 0's are left to the caller, also after an error. */
int  ranks_load(struct ranks *r, const struct ranks_model *from);

/* work(ctx, rank) once in every rank, rank 0 in the caller's thread; returns when all of them have. When one fails the others are told
 * (comm_fail), and the first failure's code and sentence are the caller's. After that, as comm says, the group is of no more use. */
int  ranks_do(struct ranks *r, int (*work)(void *ctx, struct rank *rank), void *ctx);
#endif
