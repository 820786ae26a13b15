/* loop_state: the inside of struct spec, shared by loop.c (requests and the order of things), loop_step.c (what a step enqueues),
 * loop_record.c (what a step left), loop_host.c (host strategies) and loop_open.c (memory). Nothing here is seen outside spec/.
 *
 * Decoding happens in backend memory (struct step). The host holds a copy of each text that is as old as the last record it drained; it
 * knows more only in this: each step enqueued since emits at least one token of a text that has not ended. */
#ifndef SPEC_LOOP_STATE_H
#define SPEC_LOOP_STATE_H
#include "spec/loop.h"

enum { LOOP_RING = 8 }; /* records that can be on their way; a record is lent while LOOP_RING - 1 younger ones arrive */

/* One sequence, as the host knows it. text[0, n) is prompt and answer. */
struct seq {
    int active;
    int *text;                    /* owned [cap] */
    int n, n_prompt, end, steps;  /* end: of the text, by its budget; steps: drained */
    uint32_t request, serial;     /* see struct seq_state */
    void *user;
    struct stop stop;
    enum finish finish;
    uint64_t since;               /* steps enqueued before it joined */
    int64_t submitted;            /* clock_ns */
    int64_t first_end;            /* of the first step, device's clock */
};

/* A step that was enqueued. Times of the host. */
struct enqueued {
    int64_t started, launched; /* a host strategy proposes in between */
};

/* What host strategies are told and what they say; all empty for device strategies. Arrays are indexed by i, the i-th active sequence. */
struct host_draft {
    int n;
    struct tree *tree;         /* owned [slots] */
    struct draft_text *text;   /* owned [slots]: before the step */
    struct draft_seen *seen;   /* owned [slots]: after it */
    int *staging;              /* owned [trees_ints]: struct trees' arrays as one block */
};

struct spec {
    struct model *model;       /* borrowed */
    struct spec_opts opts;     /* max_nodes: of the strategy's largest tree */
    struct kv kv;
    struct forward fwd;
    void *draft;               /* the strategy's state */
    struct seq *seq;           /* owned [slots] */
    void *memory;              /* backend: all that `step` points to, and the small tables beside it */
    int *trees;                /* backend, in `memory`: the block that struct host_draft stages */
    void *ring;                /* host memory of the backend */
    int64_t *prefill_clock;    /* the same [slots, 2]: begin and end of the prompt's prefill */
    void *accept_scratch;      /* backend */
    struct step step;
    struct accept accept;      /* the operations' arguments, the same in every step */
    struct node_stats stats;
    struct step_commit commit;
    struct host_draft host;
    uint64_t n_enqueued, n_drained; /* steps */
    struct enqueued enqueued[LOOP_RING];
    int64_t clock_offset;      /* clock_ns = device's clock + it */
    int64_t last_end;          /* of the step drained last, device's clock */
    uint32_t serials;          /* given out */
    struct step_record *records;     /* owned [slots] */
    struct node_record *nodes_of;    /* owned [slots, max_nodes] */
    int *chosen;                     /* owned [rows of a step, layers of experts, top_k], TRACE_FULL, else NULL */
    struct spec_finished *finished;  /* owned [slots] */
    int limit;                 /* most tokens of a text: cap or the model's context */
    int prefill_block;
    struct draft_hidden hidden; /* of DRAFT_HIDDEN: what the strategy keeps a pointer to, */
    struct forward_tap tap_step, tap_prefill; /* and where it comes from: prefill leaves alone what a step's draft is yet to read */
    size_t bytes;              /* of all this, cache included */
    int starved;               /* an allocation failed; see loop_open.c */
    int failed;                /* a step did: the device is not waited for any more */
};

static inline struct backend *loop_backend(const struct spec *s)
{
    return s->model->be;
}

/* Integers of the block of trees: n, then token, parent, depth, q_row and log_q. */
static inline size_t loop_trees_ints(const struct spec_opts *o)
{
    return (size_t)o->slots * (1 + 5 * (size_t)o->max_nodes);
}

/* Steps under way that the sequence is in, unless it has ended meanwhile. */
static inline int loop_in_flight(const struct spec *s, const struct seq *q)
{
    return (int)(s->n_enqueued - (s->n_drained > q->since ? s->n_drained : q->since));
}

static inline int loop_min(int a, int b)
{
    return a < b ? a : b;
}

/* Most tokens of its text. */
static inline int loop_end(const struct spec *s, const struct seq *q)
{
    return loop_min(q->end, s->limit);
}

/* 0 when the text is certain to have ended in the steps under way. */
static inline int loop_goes_on(const struct spec *s, const struct seq *q)
{
    return q->active && q->n + loop_in_flight(s, q) < loop_end(s, q);
}

/* Enqueue one step of all sequences that may go on, `rows` of them the host knows exactly, 0: whatever the strategy proposes. started: when the
 * host's work for it began. */
int loop_enqueue(struct spec *s, int rows, int64_t started);
/* Wait for the oldest step under way. */
int loop_wait(struct spec *s, struct step_entry *e);
/* Of its pass the row of a slot's root: rows of slots follow each other, those of answers that are over meanwhile included. */
int loop_first_row(const struct step_entry *e, int slot);
/* Bring texts, records and answers up to date with it. */
int loop_drain(struct spec *s, const struct step_entry *e, struct spec_step *out);
/* A host strategy proposes, and the step is enqueued. */
int loop_host_step(struct spec *s);
/* It is told what happened; returns through *ns how long that took. */
int loop_host_observe(struct spec *s, const struct spec_step *step, const struct step_entry *e, int64_t *ns);
#endif
