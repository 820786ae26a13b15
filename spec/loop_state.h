/* loop_state: the inside of struct spec, shared by loop.c (the step), loop_open.c (memory) and loop_record.c (what a step
 * reports). Nothing here is seen outside spec/. */
#ifndef SPEC_LOOP_STATE_H
#define SPEC_LOOP_STATE_H
#include "spec/loop.h"

/* One sequence. text[0, n) is prompt and answer; all but the last token, the root, stand in the cache. */
struct seq {
    int active;
    int *text; /* owned [cap] */
    int n, n_prompt, max_tokens, steps;
    uint32_t request;
    void *user;
    struct stop stop;
    enum finish finish;
    int64_t submitted, first_end; /* clock; end of the first step */
    int64_t ns_prefill;
};

/* The step under way. Arrays are indexed by i, the i-th active sequence. */
struct pass {
    int n, n_rows;
    int *slot;                 /* owned [slots] */
    struct tree *tree;         /* owned [slots] */
    struct draft_text *text;   /* owned [slots]: before the step */
    struct draft_seen *seen;   /* owned [slots]: after it */
    struct accepted *accepted; /* owned [slots], their paths in `path` */
    int *path;                 /* owned [slots, max_depth] */
    int *first_row;            /* owned [slots]: the root's row; node k stands at first_row + 1 + k */
    struct forward_row *rows;  /* owned [slots * (1 + max_nodes)] */
    int *keep;                 /* owned [1 + max_depth]: rows to commit, of one sequence */
};

struct spec {
    struct model *model;       /* borrowed */
    struct spec_opts opts;
    struct kv kv;
    struct forward fwd;
    void *draft;               /* the strategy's state */
    struct seq *seq;           /* owned [slots] */
    struct pass pass;
    struct accept_scratch scratch;
    struct step_record *records;     /* owned [slots] */
    float *log_p;                    /* owned [slots, 1 + max_depth] */
    struct node_record *nodes;       /* owned [slots, max_nodes] */
    struct spec_finished *finished;  /* owned [slots] */
    int limit;                 /* most tokens of a text: cap or the model's context */
    int prefill_block;
    size_t bytes;              /* of all this, cache included */
    int starved;               /* an allocation failed; see loop_open.c */
};

static inline const float *logit_row(const struct spec *s, int row)
{
    return s->fwd.host_logits + (size_t)row * (size_t)s->model->cfg.vocab;
}

/* The record of the i-th active sequence, times aside. */
void loop_record(struct spec *s, int i, struct step_record *r);
#endif
