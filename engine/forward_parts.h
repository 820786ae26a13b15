/* forward_parts: what forward.c (memory, plans) and forward_layers.c (the network) share. */
#ifndef ENGINE_FORWARD_PARTS_H
#define ENGINE_FORWARD_PARTS_H
#include "engine/forward.h"

struct forward_scratch {
    int *staging;             /* owned, host: what goes to `device` */
    int *device;              /* backend memory, read by the kernels through forward.rows */
    int *next;                /* owned [slots], host: next free cell of each slot while planning */
    int *keep;                /* owned [max_rows], host: 0, 1, 2, ... for commits of whole blocks */
    unsigned char *in_place;  /* owned [max_rows], host: the row and its ancestors have cell = position */
    struct forward_row *rows; /* owned [max_rows], host: a block of prefill */
    size_t path_ints;         /* room for paths */
    int bulk;                 /* the pass under way is one, see kernels/types.h */
    float *x, *qkv, *cos_sin; /* backend [max_rows, hidden], the residual stream, [max_rows, (heads + 2
                                 kv_heads) head_dim], [max_rows, head_dim] */
    void *h, *attended, *ffn; /* backend acts [max_rows, hidden], the stream's norm, [max_rows, heads
                                 head_dim], [max_rows, ffn] */
    float *square;            /* backend, of the stream's norm, see struct normed */
    float *row_scale;         /* backend [max_rows], of the act quantised last */
    float *part;              /* backend [max_rows, hidden], a rank's term of what the stream gets; NULL: the model is whole here */
    float *part_logits;       /* likewise [max_logit_rows, part.vocab] */
    float *gemm, *attention, *moe; /* backend, the kernels' own scratch */
    float *temperature;    /* backend [max_rows], of the queries of NoPE layers; NULL: there is none */
    float *router, *score; /* backend [max_rows, experts], [max_rows, top_k] of one layer of experts */
    void *copy_logits, *copy_stats, *copy_experts; /* host memory of the backend, what forward.host_* point
                                                      to; NULL where they are aliases */
};

/* Enqueue all layers over f->rows and, with FORWARD_LOGITS, the head. */
int  forward_layers(const struct forward *f, int reach, unsigned flags);
#endif
