/* model: the weights of one transformer on one backend, ready for engine/forward. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H
#include "engine/backend.h"
#include "engine/model_config.h"
#include <stdint.h>

struct checkpoint;

struct layer {
    float *attn_norm, *ffn_norm; /* [hidden] */
    struct matrix qkv;           /* [(heads + 2 kv_heads) * head_dim, hidden] */
    struct matrix o;             /* [hidden, heads * head_dim] */
    struct matrix gate_up;       /* [2 ffn, hidden], MATRIX_INTERLEAVE */
    struct matrix down;          /* [hidden, ffn] */
};

struct model {
    struct backend *be;       /* borrowed, outlives this; owns every array below but layers */
    struct model_config cfg;
    struct matrix embed;      /* [vocab, hidden] */
    struct matrix head;       /* [vocab, hidden]; tied: the same matrix as embed, sharing its data */
    float *norm;              /* [hidden] */
    float *inv_freq;          /* [head_dim / 2] */
    struct layer *layers;     /* owned [cfg.layers] */
    size_t weight_bytes;      /* what one decoded token reads: every matrix and norm once, the embedding only when tied */
    uint64_t fingerprint;     /* checkpoint_fingerprint */
};

/* From a Hugging Face directory. Tensor names: model-formats B.1. Errors: those of config and checkpoint, ERR_MEMORY. */
int  model_load(struct model *m, struct backend *be, const char *dir);
/* From a parsed config and an open checkpoint (tests). */
int  model_build(struct model *m, struct backend *be, const struct model_config *cfg, struct checkpoint *ckpt);
/* Random weights of the given shapes: N(0, 1/sqrt(fan-in)) from Philox counters, no file; the same on every run. For tests
 * and for timing true shapes. */
int  model_synthetic(struct model *m, struct backend *be, const struct model_config *cfg, uint64_t seed);
void model_deinit(struct model *m); /* before its backend closes; a zeroed struct is fine */
#endif
