/* reduce_cuda: the launchers of kernels/reduce.h, as in kernels/cuda.h, for ranks that reach each other's memory; kernels/inbox.cuh says how and
 * why it cannot go wrong. Alone or as the only rank they are the same kernels.
 * needs    part, y, whole and the act 16-byte aligned; every rank enqueues the same operations in the same order on one stream
 * bits     rank order; y's, its act's and its squares' are rmsnorm_cuda's (rmsnorm_bulk_cuda's) of the same y. A NaN may change its bits
 * lost     a kernel waits for another rank's numbers, patience_ns at most; then, or when the host has set *lost, it ends with zeros in their place, and
 *          all later ones end at once and send nothing. *lost then says why; only the host may undo it, with new inboxes */
#ifndef KERNELS_REDUCE_CUDA_H
#define KERNELS_REDUCE_CUDA_H
#include "kernels/cuda.h"
#include "kernels/reduce.h"

enum { REDUCE_RANKS = 8, REDUCE_BLOCKS = 192 };
enum { REDUCE_EMPTY_BYTE = 0xff }; /* every byte of an inbox before the first operation */
enum { REDUCE_LOST_HOST = -1 };    /* of *lost; p + 1: rank p did not send in time */

/* Of one rank; device memory, zero at first. */
struct reduce_state {
    unsigned lost, turn[REDUCE_BLOCKS]; /* operations done, as block b knows it */
};

/* A rank's way to the others. Inboxes: [2 turns][world parts, then sums][room bytes]. */
struct reduce_way {
    int rank, world;     /* world 1: nothing else is read but blocks and early */
    int alone;           /* 1: the others' inboxes are places of the own one */
    int early;           /* 1: the next kernel may start beside this one; 0 where ranks share a GPU: see inbox.cuh */
    int blocks;          /* of a launch, at most; [1, REDUCE_BLOCKS], and all of them fit on the GPU beside those of the ranks that share it */
    size_t room;         /* a multiple of 64 */
    unsigned char *inbox;              /* the own one */
    unsigned char *part[REDUCE_RANKS]; /* where rank p takes this rank's parts of turn 0; alone: the own place of rank p's */
    unsigned char *sums[REDUCE_RANKS]; /* where rank p takes sums of turn 0 */
    struct reduce_state *state;
    volatile int *lost;  /* of the host, which the device can write */
    long long patience_ns;
};

static inline size_t reduce_cuda_inbox(int world, size_t room) /* bytes */
{
    return 2 * ((size_t)world + 1) * room;
}

/* Any number of rows: what is larger than room goes in pieces. */
KERN_API int reduce_cuda(const struct reduce *a, const struct reduce_way *w, void *stream);
KERN_API int allgather_cuda(const struct allgather *a, const struct reduce_way *w, void *stream);
/* The kernels' code to the GPU, which otherwise the first launch does: that may wait for a kernel of another rank, which waits for this one. */
KERN_API int reduce_cuda_load(int world);
KERN_API int allgather_cuda_load(void);
#endif
