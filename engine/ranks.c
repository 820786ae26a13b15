/* ranks: a thread for every rank but the first, which sleeps until there is work. Jobs are counted: a thread
 * runs a job once, and the caller leaves when all have come back from it. */
#include "engine/ranks.h"
#include "engine/err.h"
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { TEXT_MAX = 4096 };

struct ranks {
    struct comm_group *group; /* owned */
    int world, threads;       /* threads: started, of ranks 1.. */
    struct rank rank[COMM_WORLD_MAX];
    struct backend be[COMM_WORLD_MAX]; /* [1..] of the ranks */
    struct model model[COMM_WORLD_MAX];
    pthread_t thread[COMM_WORLD_MAX];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int (*work)(void *ctx, struct rank *rank); /* NULL: the threads end */
    void *ctx;
    unsigned job; /* of the work above, from 1 */
    int away;     /* threads that are not back from it */
    int failed;   /* the first failure's code and sentence, of this job */
    char text[TEXT_MAX];
};

struct seat {
    struct ranks *ranks;
    int rank;
};

static void note_failure(struct ranks *r, int code)
{
    pthread_mutex_lock(&r->lock);
    if (!r->failed) {
        r->failed = code;
        snprintf(r->text, sizeof r->text, "%s", err_text());
    }
    pthread_mutex_unlock(&r->lock);
}

static void do_work(struct ranks *r, int rank)
{
    const int rc = r->work(r->ctx, &r->rank[rank]);
    if (!rc)
        return;
    note_failure(r, rc); /* before the others hear of it, whose failures are this one's echo */
    comm_fail(&r->rank[rank].comm);
}

static void *run_thread(void *arg)
{
    const struct seat seat = *(struct seat *)arg;
    struct ranks *r = seat.ranks;
    free(arg);
    for (unsigned done = 0;; done++) {
        pthread_mutex_lock(&r->lock);
        while (r->job == done)
            pthread_cond_wait(&r->changed, &r->lock);
        const int ends = !r->work;
        pthread_mutex_unlock(&r->lock);
        if (ends)
            return NULL;
        do_work(r, seat.rank);
        pthread_mutex_lock(&r->lock);
        r->away--;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
    }
}

static void post(struct ranks *r, int (*work)(void *ctx, struct rank *rank), void *ctx)
{
    pthread_mutex_lock(&r->lock);
    r->work = work;
    r->ctx = ctx;
    r->away = r->threads;
    r->failed = 0;
    r->job++;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

int ranks_do(struct ranks *r, int (*work)(void *ctx, struct rank *rank), void *ctx)
{
    post(r, work, ctx);
    do_work(r, 0);
    pthread_mutex_lock(&r->lock);
    while (r->away > 0)
        pthread_cond_wait(&r->changed, &r->lock);
    const int failed = r->failed;
    pthread_mutex_unlock(&r->lock);
    return failed ? ERR_SET(failed, "%s", r->text) : 0;
}

static int start_threads(struct ranks *r)
{
    for (int rank = 1; rank < r->world; rank++) {
        struct seat *seat = malloc(sizeof *seat);
        if (seat)
            *seat = (struct seat){r, rank};
        if (!seat || pthread_create(&r->thread[rank], NULL, run_thread, seat)) {
            free(seat);
            FAIL(ERR_MEMORY, "ranks: the system gives no thread for rank %d of %d", rank, r->world);
        }
        r->threads++;
    }
    return 0;
}

static int init_locks(struct ranks *r)
{
    if (pthread_mutex_init(&r->lock, NULL))
        return -1;
    if (pthread_cond_init(&r->changed, NULL) == 0)
        return 0;
    pthread_mutex_destroy(&r->lock);
    return -1;
}

int ranks_open(struct ranks **out, int world, struct backend *be, struct model *model, double patience_s)
{
    struct comm_group *group;
    TRY(comm_group_open(&group, world, patience_s));
    struct ranks *r = calloc(1, sizeof *r);
    if (!r || init_locks(r)) {
        comm_group_close(group);
        free(r);
        FAIL(ERR_MEMORY, "ranks: out of memory for a world of %d", world);
    }
    r->group = group;
    r->world = world;
    for (int p = 0; p < world; p++)
        r->rank[p] =
            (struct rank){comm_of(group, p), p ? &r->be[p] : be, p ? &r->model[p] : model, .user = NULL};
    const int rc = start_threads(r);
    if (rc)
        ranks_close(r);
    else
        *out = r;
    return rc;
}

/* In its own thread, where its device is the current one. */
static int close_rank(void *ctx, struct rank *rank)
{
    (void)ctx;
    if (rank->comm.rank > 0) {
        model_deinit(rank->model);
        backend_close(rank->be);
    }
    return 0;
}

void ranks_close(struct ranks *r)
{
    if (!r)
        return;
    if (r->threads == r->world - 1)
        ranks_do(r, close_rank, NULL);
    post(r, NULL, NULL);
    for (int rank = 1; rank <= r->threads; rank++)
        pthread_join(r->thread[rank], NULL);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    comm_group_close(r->group);
    free(r);
}

/* The world that the model is cut for: of these ranks, or of a rank alone. */
static struct comm place_of(const struct ranks_model *from, const struct rank *rank)
{
    const struct shard alone = from->opts.shard;
    return alone.world > 1 ? (struct comm){NULL, alone.rank, alone.world} : rank->comm;
}

static int load_model(const struct ranks_model *from, struct rank *rank, const struct comm *place)
{
    struct model_opts opts = from->opts;
    opts.shard = (struct shard){place->rank, place->world};
    if (from->dir)
        return model_load(rank->model, rank->be, from->dir, &opts);
    return model_synthetic(rank->model, rank->be, from->shape, from->seed, &opts);
}

static int load_rank(void *ctx, struct rank *rank)
{
    const struct ranks_model *from = ctx;
    const struct comm place = place_of(from, rank);
    struct backend_opts device = from->device;
    int threads = 0;
    TRY(backend_threads(&device, &threads));
    device.threads = threads / rank->comm.world > 1 ? threads / rank->comm.world : 1;
    device.device += rank->comm.rank / from->per_device;
    TRY(backend_open(rank->be, from->kind, &device));
    if (place.world > 1)
        TRY(rank->be->ops->join(rank->be, &place, 0));
    return load_model(from, rank, &place);
}

int ranks_load(struct ranks *r, const struct ranks_model *from)
{
    struct ranks_model copy = *from;
    assert(from->per_device >= 1 && (r->world == 1 || from->opts.shard.world <= 1));
    return ranks_do(r, load_rank, &copy);
}

int ranks_world(const struct ranks *r)
{
    return r->world;
}

struct rank *ranks_at(struct ranks *r, int rank)
{
    assert(rank >= 0 && rank < r->world);
    return &r->rank[rank];
}
