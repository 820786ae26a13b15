/* kv: key/value caches of `slots` sequences, all layers. In each slot, cells [0, committed) are final; cells
 * [committed, used) belong to the rows under verification; kv_commit keeps the accepted ones and forgets the rest. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H
#include "engine/model.h"

struct kv_slot {
    int committed, used; /* cells; committed <= used <= cap */
};

struct kv {
    struct backend *be;        /* borrowed, outlives this; owns the cells */
    struct kv_layer *layers;   /* owned [n_layers]; layouts in kernels/attention.h */
    struct kv_slot *slot;      /* owned [slots] */
    int *move;                 /* owned [cap], host memory: what kv_commit copies */
    int n_layers, slots, cap;  /* cap: cells a slot, a multiple of KV_BLOCK */
    size_t bytes;              /* device memory of all cells */
};

/* cap is rounded up to KV_BLOCK. ERR_MEMORY with the bytes asked for. */
int  kv_init(struct kv *kv, struct backend *be, const struct model *m, int slots, int cap);
void kv_deinit(struct kv *kv);              /* a zeroed struct is fine */
void kv_reset(struct kv *kv, int slot);     /* an empty sequence */
/* Keep the cells committed + keep[0..n), keep increasing, relative to committed; afterwards used = committed.
 * n = 0 forgets all of them (rollback). */
int  kv_commit(struct kv *kv, int slot, const int *keep, int n);
#endif
