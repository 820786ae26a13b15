/* forward: one pass of the transformer over rows of any sequences. The same code for prefill and for verification, on
 * every backend; a row's results depend on the row and its ancestors alone. */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H
#include "engine/kv.h"

/* What a pass is asked for. A tree's rows are given root first, parents before children. */
struct forward_row {
    int token, slot;
    int parent; /* index of an earlier row of this pass, or -1: continues the committed text of its slot */
};

enum { FORWARD_TAPS = 3 };

/* Features for drafts that read the target: the residual stream as it enters three layers (model-formats D.2). */
struct forward_tap {
    int layer[FORWARD_TAPS]; /* rising, below the model's layers */
    float *out;              /* host memory of the backend [FORWARD_TAPS, max_rows, hidden], row i of the last pass at i; whole after sync.
                                NULL: nobody asked, and a pass does no more than without */
};

struct forward {
    struct model *model; /* borrowed */
    struct kv *kv;       /* borrowed */
    int max_rows, max_logit_rows;
    struct rows rows;    /* backend memory, filled by forward_run */
    float *logits;       /* backend memory [max_logit_rows, vocab] of the last forward_run with logits */
    struct logit_stats *stats; /* backend memory [max_logit_rows] of the same rows */
    int *experts;        /* backend memory [moe layers, rows, top_k] of the last pass (kernels/moe.h: best first): layers in rising order,
                            rows as that pass had; without logits a last layer of experts is not run. NULL: no layer has experts */
    int moe_layers;      /* layers of experts */
    const float *host_logits;             /* the same for the host: an alias where it can read the backend's memory, */
    const struct logit_stats *host_stats; /* a copy that forward_run downloads where it cannot */
    const int *host_experts;              /* (of passes with logits) */
    struct forward_tap tap;               /* out is borrowed; set between forward_init and the first pass */
    struct forward_scratch *scratch; /* owned; see forward.c */
};

enum forward_flags {
    FORWARD_PREFILL = 0,  /* fill the cache only */
    FORWARD_LOGITS = 1,   /* logits and stats for every row (n <= max_logit_rows) */
    FORWARD_ENTROPY = 2,  /* with LOGITS: stats hold the entropy too */
    FORWARD_BULK = 4      /* without LOGITS: see kernels/types.h; forward_run finds it out itself */
};

/* Sized once: nothing is allocated in forward_run. max_rows bounds any pass, max_logit_rows those with logits. */
int  forward_init(struct forward *f, struct model *m, struct kv *kv, int max_rows, int max_logit_rows);
void forward_deinit(struct forward *f); /* a zeroed struct is fine */

/* Run rows[0..n), all layers. Row i of slot s takes the next free cell of s (kv.used grows by one a row); a row with parent
 * -1 has position committed, others position of the parent + 1; chains through committed text need parent -1 only once.
 * FORWARD_LOGITS: logits, stats and experts, and what the host has of them, row i at index i, valid until the next call.
 * ERR_LIMIT, before anything changes, when a slot's cache would overflow, a position passes the model's context, a token
 * is not of its vocabulary, or n is out of range. */
int  forward_run(struct forward *f, const struct forward_row *rows, int n, unsigned flags);
/* Enqueue the pass over rows that are described in backend memory already, f's own arrays or others: nothing is planned, copied or waited
 * for, and kv.slot is neither read nor changed. reach: every row's position is below it (struct attention), from forward_reach so that
 * few different ones occur. Logits and stats are f->logits and f->stats once the backend has computed them. */
int  forward_enqueue(struct forward *f, const struct rows *rows, int reach, unsigned flags);
int  forward_reach(const struct forward *f, int end); /* the smallest reach >= end that is used */
/* Prefill and commit n tokens of one slot (nothing uncommitted in it), in blocks that end at multiples of max_rows (absolute positions). */
int  forward_prefill(struct forward *f, int slot, const int *tokens, int n);
#endif
