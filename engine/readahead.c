/* readahead: a thread takes the next piece of the next range, tells the system of the pieces behind it, and
 * has the pages of its own mapped. All that is shared is a place in the list and how far the loader is. */
#include "engine/readahead.h"
#include "engine/clock.h"
#include "engine/err.h"
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pieces are large enough that a call costs nothing beside them. The window holds what a fast disk delivers
 * while the loader packs the largest matrix. */
enum { THREADS_MAX = 16, PIECE = 4 << 20 };
static const size_t window = (size_t)1 << 30;

struct readers {
    const struct readahead *list;
    pthread_t thread[THREADS_MAX];
    int n;
    pthread_mutex_t lock;
    pthread_cond_t moved; /* the loader is further on, or `stop` changed */
    /* under the lock */
    int range;             /* of the piece that comes next */
    size_t offset, before; /* in that range; bytes of all ranges before it */
    size_t used, until;    /* bytes of the ranges that the loader is done with; and of the one it is at */
    int stop;
    int64_t ns; /* spent reading, all threads */
};

int readahead_note(struct readahead *r, const void *at, size_t bytes)
{
    if (r->n == r->cap) {
        const int cap = r->cap ? 2 * r->cap : 256;
        struct read_range *grown = realloc(r->range, (size_t)cap * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "out of memory for a list of %d tensors", cap);
        r->range = grown;
        r->cap = cap;
    }
    r->range[r->n++] = (struct read_range){at, bytes};
    r->bytes += bytes;
    return 0;
}

/* The next piece within the window, which begins behind the range that the loader is at; 0: there is none any
 * more. Under the lock. */
static int take_piece(struct readers *t, struct read_range *out)
{
    const struct readahead *r = t->list;
    for (;;) {
        while (t->range < r->n &&
               (t->offset == r->range[t->range].bytes || t->before + r->range[t->range].bytes <= t->used)) {
            t->before += r->range[t->range].bytes;
            t->offset = 0;
            t->range++;
        }
        if (t->stop || t->range == r->n)
            return 0;
        if (t->before + t->offset < t->until + window)
            break;
        pthread_cond_wait(&t->moved, &t->lock);
    }
    const struct read_range *of = &r->range[t->range];
    const size_t left = of->bytes - t->offset;
    *out = (struct read_range){of->at + t->offset, left < PIECE ? left : PIECE};
    t->offset += out->bytes;
    return 1;
}

/* Kernels before 5.14 do not know how to map them all at once: there each page is touched. */
static void read_pages(const struct read_range *piece, size_t page)
{
    char *first = (char *)((uintptr_t)piece->at / page * page);
    const size_t bytes = (size_t)(piece->at + piece->bytes - first);
    madvise(first, bytes, MADV_WILLNEED);
    if (madvise(first, bytes, MADV_POPULATE_READ) == 0 || errno != EINVAL)
        return;
    for (size_t i = 0; i < bytes; i += page)
        (void)*(volatile char *)(first + i);
}

static void *run(void *arg)
{
    struct readers *t = arg;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct read_range piece;
    pthread_mutex_lock(&t->lock);
    while (take_piece(t, &piece)) {
        pthread_mutex_unlock(&t->lock);
        const int64_t start = clock_ns();
        read_pages(&piece, page);
        const int64_t took = clock_ns() - start;
        pthread_mutex_lock(&t->lock);
        t->ns += took;
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int readahead_start(struct readahead *r, int threads)
{
    const int most = threads < THREADS_MAX ? threads : THREADS_MAX;
    struct readers *t = calloc(1, sizeof *t);
    if (!t)
        FAIL(ERR_MEMORY, "out of memory for threads that read ahead");
    t->list = r;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->moved, NULL);
    while (t->n < most && pthread_create(&t->thread[t->n], NULL, run, t) == 0)
        t->n++;
    r->readers = t;
    return 0;
}

void readahead_next(struct readahead *r)
{
    struct readers *t = r->readers;
    if (!t || r->next == r->n)
        return;
    pthread_mutex_lock(&t->lock);
    t->used = t->until;
    t->until += r->range[r->next++].bytes;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
}

void readahead_stop(struct readahead *r, double *seconds)
{
    struct readers *t = r->readers;
    *seconds = 0;
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->stop = 1;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->n; i++)
        pthread_join(t->thread[i], NULL);
    if (t->n > 0)
        *seconds = 1e-9 * (double)t->ns / t->n;
    pthread_cond_destroy(&t->moved);
    pthread_mutex_destroy(&t->lock);
    free(t);
    r->readers = NULL;
}

void readahead_deinit(struct readahead *r)
{
    double seconds;
    readahead_stop(r, &seconds);
    free(r->range);
    *r = (struct readahead){0};
}
