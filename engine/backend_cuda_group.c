/* backend_cuda_group: ranks reach each other's inboxes (kernels/inbox.cuh) by peer access, or share a GPU. A
 * kernel that waits for a rank gives up after the group's patience, or when its host, which polls while it
 * waits, learns that a rank has failed; so nothing here waits for ever.
 *
 * Kernels of other ranks write into an inbox, and their hosts into `lost`, until they leave, so both are
 * freed together by the rank that leaves last. A rank that never leaves (its thread has gone) leaves them to
 * the end of the process. */
#include "engine/backend_cuda_group.h"
#include "engine/backend_cuda.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/nccl.h"
#include "kernels/reduce_cuda.h"
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

_Static_assert((int)REDUCE_RANKS >= (int)COMM_WORLD_MAX, "a kernel knows the way to every rank");

enum { ASK_EVERY = 64, ONLY_BLOCKS = 96 };
#define ROOM_MAX         ((size_t)4 << 20)  /* larger parts go in pieces, or in bulk by NCCL */
#define LIBRARY_MAX      ((size_t)32 << 20) /* a piece of those */
#define PATIENCE_ALONE_S 60.0

/* What a rank tells the others. */
struct card {
    unsigned char *inbox;
    volatile int *lost; /* pinned; see reduce_way */
    int device;
    atomic_int *here; /* rank 0's: ranks that have not left */
};

struct cuda_group {
    struct reduce_way way; /* its inbox and lost: owned until here is known, then the group's */
    struct card card[COMM_WORLD_MAX];
    atomic_int *here;  /* the group's; NULL: nobody else knows the inbox */
    struct nccl *nccl; /* owned; NULL: not here, or nothing is large enough */
    float *sum;        /* [sum_bytes] NCCL's */
    size_t sum_bytes;
    int nccl_runs; /* 1: something was enqueued or recorded with it */
};

static const struct reduce_way only = {.world = 1, .early = 1, .blocks = ONLY_BLOCKS};

static const struct reduce_way *way_of(const struct backend *be)
{
    const struct cuda_group *g = cuda_of(be)->group;
    return g ? &g->way : &only;
}

static size_t room_for(size_t bytes)
{
    const size_t some = bytes < ROOM_MAX ? bytes : ROOM_MAX;
    return (some + 63) / 64 * 64 + 64;
}

static int make_inbox(struct backend *be, struct cuda_group *g, int world, size_t bytes)
{
    g->way.room = room_for(bytes);
    const size_t all = reduce_cuda_inbox(world, g->way.room);
    void *inbox = NULL, *state = NULL, *lost = NULL;
    TRY(cuda_check(be, cudaMalloc(&inbox, all), "allocating the inbox of a rank"));
    g->way.inbox = inbox;
    be->allocated += all;
    TRY(cuda_check(be, cudaMemset(inbox, REDUCE_EMPTY_BYTE, all), "clearing the inbox of a rank"));
    TRY(cuda_alloc(be, sizeof *g->way.state, &state));
    g->way.state = state;
    TRY(cuda_check(be, cudaMallocHost(&lost, sizeof *g->way.lost), "pinning host memory"));
    g->way.lost = lost;
    *g->way.lost = 0;
    return cuda_check(be, cudaDeviceSynchronize(), "clearing the inbox of a rank");
}

/* A card of every rank in g->card. */
static int exchange_cards(struct cuda_group *g, const struct comm *c)
{
    struct card mine = {.inbox = g->way.inbox, .lost = g->way.lost};
    if (c->rank == 0 && c->group) {
        mine.here = malloc(sizeof *mine.here);
        if (!mine.here)
            FAIL(ERR_MEMORY, "cuda backend: out of memory for a group of %d ranks", c->world);
        atomic_init(mine.here, c->world);
    }
    cudaGetDevice(&mine.device);
    TRY(comm_exchange(c, &mine, sizeof mine,
                      g->card)); /* on failure some rank may have read here: nobody frees it */
    g->here = c->group ? g->card[0].here : NULL;
    return 0;
}

static int reach(struct backend *be, int from, int to)
{
    int can = 0;
    TRY(cuda_check(be, cudaDeviceCanAccessPeer(&can, from, to), "asking for peer access"));
    if (!can)
        FAIL(ERR_DEVICE,
             "cuda: GPU %d cannot reach the memory of GPU %d, which ranks of a group need: choose GPUs that "
             "'specbed list devices' shows as peers",
             from, to);
    const cudaError_t rc = cudaDeviceEnablePeerAccess(to, 0);
    if (rc == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        return 0;
    }
    return cuda_check(be, rc, "enabling peer access");
}

/* Where this rank's numbers go. Alone they go to the places that it reads the others' from. */
static void lay_ways(struct cuda_group *g, const struct comm *c)
{
    struct reduce_way *w = &g->way;
    for (int p = 0; p < c->world; p++) {
        unsigned char *inbox = g->card[p].inbox;
        w->part[p] = inbox + (size_t)(w->alone ? p : c->rank) * w->room;
        w->sums[p] = inbox + (size_t)c->world * w->room;
    }
}

/* Where ranks share a GPU, those that wait must leave room for whatever the others compute, clusters of
 * blocks included. */
static int share_device(struct backend *be, struct cuda_group *g, const struct comm *c)
{
    const int mine = g->card[c->rank].device;
    int processors = 0, sharing = 0;
    for (int p = 0; p < c->world; p++)
        sharing += c->group && g->card[p].device == mine;
    TRY(cuda_check(be, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, mine),
                   "asking for the GPU's size"));
    const int blocks = sharing > 1 ? processors / 4 / sharing : processors * 3 / 4;
    g->way.blocks = blocks < 1 ? 1 : blocks < REDUCE_BLOCKS ? blocks : REDUCE_BLOCKS;
    g->way.early = sharing <= 1;
    return 0;
}

/* NCCL cannot have two ranks on one GPU. Where it is missing our own collectives take all sizes. */
static int open_library(struct backend *be, struct cuda_group *g, const struct comm *c, size_t bytes)
{
    void *sum = NULL;
    if (!c->group || bytes <= ROOM_MAX)
        return 0;
    for (int p = 0; p < c->world; p++)
        for (int q = 0; q < p; q++)
            if (g->card[p].device == g->card[q].device)
                return 0;
    TRY(nccl_open(&g->nccl, c));
    if (!g->nccl) {
        if (c->rank == 0)
            log_info("cuda: parts of more than %zu MiB go in pieces: %s", ROOM_MAX >> 20, err_text());
        err_clear();
        return 0;
    }
    g->sum_bytes = bytes < LIBRARY_MAX ? bytes : LIBRARY_MAX;
    TRY(cuda_alloc(be, g->sum_bytes, &sum));
    g->sum = sum;
    return 0;
}

static int join(struct backend *be, struct cuda_group *g, const struct comm *c, size_t bytes)
{
    const double patience_s = c->group ? comm_patience(c) : PATIENCE_ALONE_S;
    g->way.rank = c->rank;
    g->way.world = c->world;
    g->way.alone = !c->group;
    g->way.patience_ns = (long long)(1e9 * patience_s);
    TRY(make_inbox(be, g, c->world, bytes));
    TRY(exchange_cards(g, c));
    const int mine = g->card[c->rank].device;
    for (int p = 0; p < c->world; p++)
        if (g->card[p].device != mine)
            TRY(reach(be, mine, g->card[p].device));
    TRY(share_device(be, g, c));
    lay_ways(g, c);
    TRY(cuda_check(be, (cudaError_t)reduce_cuda_load(c->world), "loading the kernels of a group"));
    TRY(cuda_check(be, (cudaError_t)allgather_cuda_load(), "loading the kernels of a group"));
    TRY(open_library(be, g, c, bytes));
    return comm_barrier(c);
}

/* Parts that have grown need another inbox in every rank. Recorded passes know the way to the old ones. */
static int leave(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    if (!c->group)
        return 0;
    TRY(cuda_check(be, cuda_group_wait(be), "leaving a group"));
    cuda_close_graphs(c);
    cuda_group_close(be);
    return 0;
}

static int join_anew(struct backend *be, const struct comm *c, size_t bytes)
{
    struct cuda_group *g = NULL;
    TRY(leave(be));
    g = cuda_of(be)->group = calloc(1, sizeof *g);
    if (!g)
        FAIL(ERR_MEMORY, "cuda backend: out of memory for a group of %d ranks", c->world);
    return join(be, g, c, bytes);
}

/* A rank that cannot join says so, so that the others need not wait for it. */
int cuda_join(struct backend *be, const struct comm *c, size_t bytes)
{
    const struct cuda_group *g = cuda_of(be)->group;
    be->comm = *c;
    if (c->world == 1 || (g && room_for(bytes) <= g->way.room))
        return comm_barrier(c);
    const int rc = join_anew(be, c, bytes);
    if (rc)
        comm_fail(c);
    return rc;
}

/* Whole rows at a time: NCCL's sum, then what a rank does that is the only one. */
static int library_rows(struct backend *be, const struct reduce *a, int row, int rows)
{
    struct cuda_group *g = cuda_of(be)->group;
    const size_t at = (size_t)row * (size_t)a->n;
    struct reduce end = *a;
    end.part = g->sum;
    end.y = a->y + at;
    end.rows = end.norm.rows = rows;
    end.wire = WIRE_F32;
    end.norm.x = end.y;
    end.scale = a->scale ? a->scale + row : NULL;
    end.norm.y.act = a->norm.bulk ? (void *)((bf16 *)a->norm.y.act + at) : a->norm.y.act;
    g->nccl_runs = 1;
    TRY(nccl_all_reduce(g->nccl, a->part + at, g->sum, (size_t)rows * (size_t)a->n, cuda_of(be)->stream));
    be->launches++;
    return cuda_launched(be, reduce_cuda(&end, &only, cuda_of(be)->stream),
                         (struct cuda_launch){"reduce by NCCL", rows, a->n, a->n});
}

static int library_reduce(struct backend *be, const struct reduce *a)
{
    const struct cuda_group *g = cuda_of(be)->group;
    const size_t fit = g && g->nccl ? g->sum_bytes / ((size_t)a->n * sizeof(float)) : 0;
    const int each = fit > INT_MAX ? INT_MAX : (int)fit;
    if (each < 1 || (!a->norm.bulk && each < a->rows))
        FAIL(ERR_CONFIG,
             "cuda: a reduce of %d rows [%d] by NCCL was asked for, which this group has not opened for it",
             a->rows, a->n);
    for (int row = 0; row < a->rows; row += each)
        TRY(library_rows(be, a, row, a->rows - row < each ? a->rows - row : each));
    return 0;
}

static int is_for_library(const struct backend *be, const struct reduce *a)
{
    const struct cuda_group *g = cuda_of(be)->group;
    if (a->path != REDUCE_BY_SIZE)
        return a->path == REDUCE_LIBRARY;
    return a->norm.bulk && g && g->nccl && (size_t)a->rows * (size_t)a->n * sizeof(float) > g->way.room;
}

int cuda_reduce(struct backend *be, const struct reduce *a)
{
    if (is_for_library(be, a))
        return library_reduce(be, a);
    return cuda_launched(be, reduce_cuda(a, way_of(be), cuda_of(be)->stream),
                         (struct cuda_launch){"reduce", a->rows, a->n, a->n});
}

int cuda_allgather(struct backend *be, const struct allgather *a)
{
    return cuda_launched(be, allgather_cuda(a, way_of(be), cuda_of(be)->stream),
                         (struct cuda_launch){"allgather", a->rows, a->n, a->each});
}

/* Of all ranks: the host of another one may stand in a call of the driver until its kernels end. NCCL's only
 * this rank can end. */
static void stop_kernels(struct cuda_group *g, int world)
{
    nccl_abort(g->nccl);
    for (int p = 0; g->here && p < world; p++)
        if (*g->card[p].lost == 0)
            *g->card[p].lost = REDUCE_LOST_HOST;
}

/* NCCL's kernels know no patience: whoever waits twice as long as a rank may be waited for ends them. */
static int lost_in_library(const struct backend *be, const struct cuda_group *g, int64_t began)
{
    const double waited = 1e-9 * (double)(clock_ns() - began);
    if (!g->nccl_runs || waited < 2 * comm_patience(&be->comm))
        return 0;
    ERR_SET(ERR_DEVICE,
            "cuda: rank %d of %d waited %.0f s for its stream, in which NCCL runs: another rank did not come",
            be->comm.rank, be->comm.world, waited);
    comm_fail(&be->comm);
    return 1;
}

cudaError_t cuda_group_wait(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    struct cuda_group *g = c->group;
    cudaError_t rc = cudaErrorNotReady;
    if (!g)
        return cudaStreamSynchronize(c->stream);
    const int64_t began = clock_ns();
    for (unsigned i = 1; (rc = cudaStreamQuery(c->stream)) == cudaErrorNotReady; i++) {
        cudaGetLastError(); /* that is no error */
        if (i % ASK_EVERY == 0 && (comm_failed(&be->comm) || lost_in_library(be, g, began)))
            stop_kernels(g, be->comm.world);
        sched_yield();
    }
    return rc;
}

int cuda_group_check(struct backend *be)
{
    struct cuda_group *g = cuda_of(be)->group;
    if (!g)
        return 0;
    const int rc = comm_check(&be->comm), lost = g->way.lost ? *g->way.lost : 0;
    if (rc)
        stop_kernels(g, be->comm.world);
    if (rc || lost == 0)
        return rc;
    ERR_SET(ERR_DEVICE, "cuda: rank %d of %d waited %g s for rank %d in a reduce or allgather on %s",
            be->comm.rank, be->comm.world, 1e-9 * (double)g->way.patience_ns, lost - 1, be->device);
    comm_fail(&be->comm);
    return ERR_DEVICE;
}

static void free_inboxes(const struct cuda_group *g, int world)
{
    for (int p = 0; p < world; p++) {
        cudaFree(g->card[p].inbox);
        cudaFreeHost((void *)g->card[p].lost);
    }
    free(g->here);
}

void cuda_group_end(struct backend *be)
{
    struct cuda_group *g = cuda_of(be)->group;
    if (g && comm_failed(&be->comm))
        stop_kernels(g, be->comm.world);
}

void cuda_group_close(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    struct cuda_group *g = c->group;
    if (!g)
        return;
    nccl_close(g->nccl);
    be->allocated -= g->way.inbox ? reduce_cuda_inbox(g->way.world, g->way.room) : 0;
    if (!g->here) {
        cudaFree(g->way.inbox);
        cudaFreeHost((void *)g->way.lost);
    } else if (atomic_fetch_sub(g->here, 1) == 1) {
        free_inboxes(g, g->way.world);
    }
    cuda_release(be, g->way.state);
    cuda_release(be, g->sum);
    free(g);
    c->group = NULL;
}
