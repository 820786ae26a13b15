/* head: an EAGLE-3 draft network on one backend (model-formats D.1): three features of the target fused by fc, one layer that reads them
 * beside the embedding of the next token, and a product over the draft vocabulary.
 *   g = fc(low, mid, high)                       for rows that follow the target; others continue g = h of their parent
 *   h = r + o(attention(norm(e), norm(g)))       r = g, or norm(g) with norm_before_residual
 *   h = h + mlp(norm(h));  logits = lm_head(norm(h))
 * What fc and attention multiply are concatenations, whose parts are written side by side by kernels/gather.h. */
#ifndef ENGINE_HEAD_H
#define ENGINE_HEAD_H
#include "engine/kv.h"

enum { HEAD_TAPS = 3, HEAD_DIM_LIMIT = 1024 };

struct head_config {
    int hidden, target_hidden, ffn, heads, kv_heads, head_dim;
    int vocab, target_vocab;    /* ids it can draft; of the target */
    float rms_eps;
    struct model_config rope;   /* head_dim and the rope_* alone: what model_config_inv_freq reads */
    int positions;              /* that it was made for, 0: it does not say; later ones are computed all the same */
    int window;                 /* a query sees so many keys, 0: all; a head is refused where that would matter */
    int norm_before_residual;
    int norm_before_fc;         /* the three features are normed as one */
    int fc_norm;                /* each feature is normed before fc */
    int feed_normed;            /* g of the next step is norm(h) */
    int qk_norm;                /* queries and keys are normed head by head before they rotate (Qwen3) */
    int layer[HEAD_TAPS];       /* whose inputs are the features */
    int layers_given;           /* config.json names them */
};

struct head {
    struct backend *be;          /* borrowed; owns the arrays */
    const struct model *target;  /* borrowed: embedding, and lm head where the file has none */
    struct head_config cfg;
    struct matrix fc;            /* [hidden, 3 target_hidden] */
    struct matrix qkv;           /* [(heads + 2 kv_heads) head_dim, 2 hidden]: of the embedding beside g */
    struct matrix o, gate_up, down, embed, lm_head; /* the last two without data: the target's */
    float *fc_norm[HEAD_TAPS];   /* [target_hidden] */
    float *input_norm;           /* norm_before_fc: [3 target_hidden] */
    float *qk_gain;              /* [2, head_dim] of queries, of keys */
    float *embed_norm, *hidden_norm, *ffn_norm, *norm, *inv_freq;
    int *d2t;                    /* owned, host [vocab]: the target's id of each */
    int *ids;                    /* the same in backend memory */
};

/* DIR with config.json and safetensors, or "synthetic": random weights of the target's width. MODEL_FP8 rounds every matrix of its own but the
 * embedding. Errors: ERR_IO; ERR_FORMAT for a tensor that is missing, of another shape or not known; ERR_LIMIT for what is not computed;
 * ERR_CONFIG for a head of another target. */
int  head_open(struct head *h, const struct model *target, const char *dir, enum model_numbers weights);
void head_close(struct head *h); /* a zeroed struct is fine */
/* Of config.json: every field is used, known to say nothing, or refused by name. */
int  head_config_read(struct head_config *c, const struct model_config *target, const char *dir);
int  head_config_parse(struct head_config *c, const struct model_config *target, const char *json, unsigned long n, const char *what);
void head_config_like(struct head_config *c, const struct model_config *target);

/* One row: its token, where its key goes, and the cells of its ancestors from position base on, itself last. */
struct head_row {
    int token, slot, pos, cell, base;
    const int *path; /* [pos - base + 1]; none when base = pos + 1 */
};

enum head_pass_flags {
    HEAD_FEATURES = 1, /* g = fc(features); without, g is there already */
    HEAD_CACHE = 2     /* keys and values of the rows are wanted, and nothing else */
};

/* A pass of at most max_rows rows. All but `staging` is memory of the backend. */
struct head_pass {
    struct head *head; /* borrowed */
    struct kv kv;
    int max_rows, max_path, n;
    int *ints;         /* token, slot, pos, cell, base, path_off [max_rows] each, then paths */
    int *staging;      /* owned, host: the same */
    float *feature;    /* in [3, max_rows, target_hidden], or wherever `source` says */
    struct {
        const float *rows; /* [3, plane, target_hidden], feature of its own after init */
        int plane;
        const int *from;   /* [n] which of them the rows of the pass have, -1: none; NULL: in order */
    } source;
    float *x;          /* in g, out h (or norm(h)), [max_rows, hidden] */
    float *logits;     /* out [max_rows, vocab] */
    float *e, *qkv, *cos_sin, *square, *gemm, *attention;
    float *wide;       /* norm_before_fc: [max_rows, 3 target_hidden] the features of a row side by side */
    void *features, *beside, *normed, *attended, *ffn; /* acts: what fc, qkv, the other products of the stream, o and down multiply */
};
int  head_pass_init(struct head_pass *p, struct head *h, int slots, int cap, int max_rows, int max_depth);
void head_pass_deinit(struct head_pass *p);
/* pass->feature or x is filled. Waits for the results. */
int  head_pass_run(struct head_pass *p, const struct head_row *rows, int n, unsigned flags);
int  head_pass_start(struct head_pass *p, const struct head_row *rows, int n, unsigned flags); /* without waiting */
/* Enqueue a pass over rows that are described in backend memory already; reach as struct attention. */
int  head_pass_enqueue(struct head_pass *p, const struct rows *rows, int reach, unsigned flags);
#endif
