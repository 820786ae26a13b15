/* comm: ranks as threads of one process. An exchange is a counted barrier around a small table; two tables
 * take turns, so a fast rank may enter the next exchange while a slow one still reads this one, and it gets
 * no further before the slow one has come. Waiting is on a condition: a rank that waits burns no core that
 * the others need. */
#include "engine/comm.h"
#include "engine/err.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXCHANGE_MAX = 4096, WHY_MAX = 1024 };

struct comm_group {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the round is complete, or a rank failed */
    int world;
    double patience_s;
    unsigned round;           /* exchanges completed */
    int n_here;               /* ranks that came to this round */
    int here[COMM_WORLD_MAX]; /* which ones */
    int failed;               /* 1: for good */
    char why[WHY_MAX];
    unsigned char given[2][COMM_WORLD_MAX][EXCHANGE_MAX]; /* by the parity of the round */
};

/* Deadlines are on the clock that never jumps. */
static int init_locks(struct comm_group *g)
{
    pthread_condattr_t clock;
    if (pthread_mutex_init(&g->lock, NULL))
        return -1;
    if (pthread_condattr_init(&clock) == 0) {
        const int rc =
            pthread_condattr_setclock(&clock, CLOCK_MONOTONIC) || pthread_cond_init(&g->changed, &clock);
        pthread_condattr_destroy(&clock);
        if (rc == 0)
            return 0;
    }
    pthread_mutex_destroy(&g->lock);
    return -1;
}

int comm_group_open(struct comm_group **out, int world, double patience_s)
{
    assert(patience_s > 0);
    if (world < 1 || world > COMM_WORLD_MAX)
        FAIL(ERR_CONFIG, "comm: expected 1 to %d ranks, found %d", COMM_WORLD_MAX, world);
    struct comm_group *g = calloc(1, sizeof *g);
    if (!g)
        FAIL(ERR_MEMORY, "comm: out of memory for a group of %d ranks", world);
    if (init_locks(g)) {
        free(g);
        FAIL(ERR_MEMORY, "comm: the system gives no lock for a group of %d ranks", world);
    }
    g->world = world;
    g->patience_s = patience_s;
    *out = g;
    return 0;
}

void comm_group_close(struct comm_group *g)
{
    if (!g)
        return;
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

struct comm comm_of(struct comm_group *g, int rank)
{
    assert(rank >= 0 && rank < g->world);
    return (struct comm){g, rank, g->world};
}

/* Under the lock: the first reason stays. */
static void fail_group(struct comm_group *g, const char *why)
{
    if (!g->failed)
        snprintf(g->why, sizeof g->why, "%s", why);
    g->failed = 1;
    pthread_cond_broadcast(&g->changed);
}

static void fail_missing(struct comm_group *g)
{
    char names[8 * COMM_WORLD_MAX] = "", why[WHY_MAX];
    size_t at = 0;
    for (int p = 0; p < g->world; p++)
        if (!g->here[p])
            at += (size_t)snprintf(names + at, sizeof names - at, "%s%d", at ? ", " : "", p);
    snprintf(why, sizeof why, "rank %s of %d did not come to exchange %u within %g s", names, g->world,
             g->round, g->patience_s);
    fail_group(g, why);
}

static struct timespec deadline(double patience_s)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)patience_s;
    t.tv_nsec += (long)((patience_s - (double)(time_t)patience_s) * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* Under the lock: until `round` is complete or the group has failed. */
static void wait_round(struct comm_group *g, unsigned round)
{
    const struct timespec until = deadline(g->patience_s);
    while (g->round == round && !g->failed)
        if (pthread_cond_timedwait(&g->changed, &g->lock, &until) == ETIMEDOUT && g->round == round)
            fail_missing(g);
}

static void arrive(struct comm_group *g, int rank)
{
    g->here[rank] = 1;
    if (++g->n_here < g->world)
        return;
    memset(g->here, 0, sizeof g->here);
    g->n_here = 0;
    g->round++;
    pthread_cond_broadcast(&g->changed);
}

/* Under the lock, which it gives back: the sentence is copied while nobody writes it. */
static int leave(struct comm_group *g)
{
    const int rc = g->failed ? ERR_SET(ERR_DEVICE, "%s", g->why) : 0;
    pthread_mutex_unlock(&g->lock);
    return rc;
}

int comm_exchange(const struct comm *c, const void *mine, size_t bytes, void *all)
{
    struct comm_group *g = c->group;
    assert(bytes <= EXCHANGE_MAX);
    if (!g) { /* alone: whatever the others would say is what it says itself */
        for (int p = 0; bytes && p < c->world; p++)
            memcpy((char *)all + (size_t)p * bytes, mine, bytes);
        return 0;
    }
    pthread_mutex_lock(&g->lock);
    if (!g->failed) {
        const unsigned round = g->round;
        if (bytes)
            memcpy(g->given[round % 2][c->rank], mine, bytes);
        arrive(g, c->rank);
        wait_round(g, round);
        for (int p = 0; bytes && !g->failed && p < g->world; p++)
            memcpy((char *)all + (size_t)p * bytes, g->given[round % 2][p], bytes);
    }
    return leave(g);
}

int comm_barrier(const struct comm *c)
{
    return comm_exchange(c, NULL, 0, NULL);
}

void comm_fail(const struct comm *c)
{
    char why[WHY_MAX];
    if (!c->group)
        return;
    snprintf(why, sizeof why, "rank %d of %d gave up: %s", c->rank, c->world, err_text());
    pthread_mutex_lock(&c->group->lock);
    fail_group(c->group, why);
    pthread_mutex_unlock(&c->group->lock);
}

int comm_check(const struct comm *c)
{
    if (!c->group)
        return 0;
    pthread_mutex_lock(&c->group->lock);
    return leave(c->group);
}

int comm_failed(const struct comm *c)
{
    if (!c->group)
        return 0;
    pthread_mutex_lock(&c->group->lock);
    const int failed = c->group->failed;
    pthread_mutex_unlock(&c->group->lock);
    return failed;
}

double comm_patience(const struct comm *c)
{
    return c->group ? c->group->patience_s : 0;
}
