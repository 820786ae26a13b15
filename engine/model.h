/* model: the weights of one transformer on one backend, ready for engine/forward. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H
#include "engine/backend.h"
#include "engine/model_config.h"
#include <stdint.h>

struct checkpoint;

/* What a model's numbers are kept in; 0: as stored, in BF16 (the CPU computes in F32). Static: of activations alone. */
enum model_numbers { MODEL_BF16, MODEL_FP8, MODEL_FP8_STATIC };
/* One rank of a group that holds a model together: see struct model_part. world 0 or 1: all of it. */
struct shard {
    int rank, world;
};
struct model_opts {
    enum model_numbers weights;     /* of the layers' matrices; embedding and head stay BF16 */
    enum model_numbers activations; /* what FP8 matrices multiply, rounded: FP8 per token, needs weights FP8; static by the checkpoint's
                                       input_scale, one a matrix (the largest of parts stacked), which every FP8 matrix must then have, or by
                                       what a text gives */
    enum model_numbers kv;          /* the cache of keys and values */
    int calibrates;                 /* 1: static scales will come from model_calibrate (engine/calibrate.h), not from the checkpoint */
    float expert_skew;              /* random weights: of all rows, expert e is the best of about 1 / (1 + e)^skew; see engine/model_router.c */
    struct shard shard;             /* a rank keeps and reads its share alone */
    int readers;                    /* threads that read the files ahead of the packing; 0: as many as suit them, -1: none */
};

/* How long model_load took. */
struct model_load {
    double seconds;      /* until the last matrix was packed */
    double read_seconds; /* that the readers spent reading, their mean; 0: there were none */
    size_t bytes;        /* of the files that were read */
    int readers;
};

/* What a rank has of a model: of the attention whole heads (rows of q, k, v, columns of o), of every MLP and expert a run of its
 * inner columns (rows of gate and up, columns of down), of the head a run of tokens; router, norms and embedding whole. The
 * numbers are those of the whole model: what the ranks have, put together, is what a world of 1 has, bit for bit. */
struct model_part {
    int heads, kv_heads;
    int vocab, vocab_first, vocab_each; /* rows of the head: [vocab_first, vocab_first + vocab); vocab_each of every rank but the last, in 16s */
    int ffn, ffn_dense;     /* widths, as in model_config; past ffn / world there may be zeros, up to a multiple of 16 */
};
/* ERR_CONFIG: a world that does not divide the model; the message has the numbers, and the worlds that do. */
int model_part_of(struct model_part *part, const struct model_config *cfg, struct shard shard);

struct layer {
    int kind;                    /* enum layer_kind or'ed */
    float *attn_norm, *ffn_norm; /* [hidden] */
    struct matrix qkv;           /* [(part.heads + 2 part.kv_heads) * head_dim, hidden] */
    struct matrix o;             /* [hidden, part.heads * head_dim] */
    struct matrix gate_up;       /* [2 part.ffn, hidden], MATRIX_INTERLEAVE; Llama 4: part.ffn_dense, or the shared expert's of a MoE layer */
    struct matrix down;          /* [hidden, part.ffn] */
    struct matrix router;        /* MoE: [experts, hidden], always BF16 */
    struct matrix *expert_gate_up, *expert_down; /* MoE: owned [experts], as gate_up and down */
};

struct model {
    struct backend *be;       /* borrowed, outlives this; owns every array below but layers */
    struct model_config cfg;  /* of the whole model, whatever the rank */
    struct model_part part;   /* what is here */
    struct model_opts opts;
    struct matrix embed;      /* [vocab, hidden] */
    struct matrix head;       /* [part.vocab, hidden]; tied and whole: the same matrix as embed, sharing its data */
    float *norm;              /* [hidden] */
    float *inv_freq;          /* [head_dim / 2] */
    struct layer *layers;     /* owned [cfg.layers] */
    size_t weight_bytes;      /* what one decoded token reads: every matrix and norm once, top_k experts a layer, the embedding only when tied */
    uint64_t fingerprint;     /* checkpoint_fingerprint */
    struct model_load load;   /* 0: random weights */
};

/* 1: this is one rank's share, whose sums and logits are parts. */
static inline int model_is_part(const struct model *m)
{
    return m->opts.shard.world > 1;
}

/* From a Hugging Face directory. Tensor names: model-formats A.8, B.1, C. Numbers stored in FP8 keep their scales; what they multiply is
 * rounded only where opts say so. Errors: those of config and checkpoint, ERR_MEMORY. */
int  model_load(struct model *m, struct backend *be, const char *dir, const struct model_opts *opts); /* opts NULL: all zero */
/* From a parsed config and an open checkpoint (tests). */
int  model_build(struct model *m, struct backend *be, const struct model_config *cfg, struct checkpoint *ckpt,
                 const struct model_opts *opts);
/* Random weights of the given shapes: N(0, 1/sqrt(fan-in)), a router's rows of equal norm, before experts an embedding N(0, 1) and smaller sums, from Philox counters, no file; the same on every run. For tests
 * and for timing true shapes. */
int  model_synthetic(struct model *m, struct backend *be, const struct model_config *cfg, uint64_t seed, const struct model_opts *opts);
void model_deinit(struct model *m); /* before its backend closes; a zeroed struct is fine */
#endif
