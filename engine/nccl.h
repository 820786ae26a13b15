/* nccl: NVIDIA's collectives, for parts so large that the links' speed is all that counts, and as what ours are compared with. The library is
 * loaded when a group opens it, as libnccl.so.2; where it is missing our own collectives do its work. Its order of addition is its own: the same in
 * all ranks, but not that of ranks. NVLink multicast stays off unless NCCL_NVLS_ENABLE says otherwise.
 * Every function but nccl_abort is called by all ranks in the same order, each from its own thread, no two of them on one GPU. */
#ifndef ENGINE_NCCL_H
#define ENGINE_NCCL_H
#include "engine/comm.h"

struct nccl; /* a rank's */

/* *out NULL and 0: some rank has no library, and every rank's err_text says why. ERR_DEVICE: it does not start, or a rank failed. */
int  nccl_open(struct nccl **out, const struct comm *c);
void nccl_close(struct nccl *n); /* nothing may be running; accepts NULL */
void nccl_abort(struct nccl *n); /* what runs or waits in it ends with numbers of no use; later calls fail */
/* Enqueue on `stream` (a cudaStream_t), which may be recorded. to may be from. */
int  nccl_all_reduce(struct nccl *n, const float *from, float *to, size_t numbers, void *stream);
#endif
